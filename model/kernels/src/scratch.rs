//! Per-thread scratch memory that is reused by later calls, aligned to a cache line.

use bytemuck::{Pod, Zeroable};
use std::cell::RefCell;

/// One cache line, the unit of allocation.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

/// Numbers on the stack that start on a cache line.
#[repr(C, align(64))]
pub(crate) struct OnCacheLines<const N: usize>(pub(crate) [f32; N]);

thread_local! {
    /// Buffers this thread is not using. A kernel that waits inside rayon may start another
    /// kernel on the same thread, so buffers are taken out and put back, never borrowed.
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer on loan from the thread it was made on; its contents are unspecified.
#[derive(Debug)]
pub(crate) struct Scratch {
    lines: Vec<Line>,
    bytes: usize,
}

impl Scratch {
    /// At least `len` elements of `T`, of unspecified value.
    pub(crate) fn new<T: Pod>(len: usize) -> Self {
        let bytes = len * size_of::<T>();
        let count = bytes.div_ceil(size_of::<Line>());
        let mut lines = FREE.with_borrow_mut(|free| {
            // The smallest buffer that fits, else the largest one, which then grows.
            let fits = (0..free.len())
                .filter(|&i| free[i].len() >= count)
                .min_by_key(|&i| free[i].len())
                .or_else(|| (0..free.len()).max_by_key(|&i| free[i].len()));
            fits.map(|i| free.swap_remove(i)).unwrap_or_default()
        });
        if lines.len() < count {
            lines = vec![Line::zeroed(); count];
        }
        Self { lines, bytes }
    }

    /// The buffer as a slice of `T`.
    pub(crate) fn as_mut<T: Pod>(&mut self) -> &mut [T] {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.lines);
        bytemuck::cast_slice_mut(&mut bytes[..self.bytes])
    }

    /// The buffer as a slice of `T`, to read.
    pub(crate) fn as_ref<T: Pod>(&self) -> &[T] {
        let bytes: &[u8] = bytemuck::cast_slice(&self.lines);
        bytemuck::cast_slice(&bytes[..self.bytes])
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // During thread shutdown the pool may be gone; the buffer is then simply freed.
        let _ = FREE.try_with(|free| free.borrow_mut().push(lines));
    }
}
