//! Storage for the outputs of ops, used again instead of being returned to the system.
//!
//! Every training step asks for the same sizes in the same order. A buffer that is free is handed
//! out again at once: no page is faulted in and zeroed a second time, and storage is aligned to a
//! cache line. The pool never holds much more than the most that was ever in use, so a run that
//! changes its shapes does not pile up buffers of the old ones.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Bytes;
use cubecl_environment::bytes::{
    AccessError, AccessPolicy, AllocationController, AllocationProperty,
};

/// A cache line, and the width of the widest vector.
const ALIGN: usize = 64;

/// Smaller outputs come from the system's allocator, which keeps such sizes at hand itself.
pub(super) const SMALLEST: usize = 1 << 16;

static POOL: Mutex<Pool> = Mutex::new(Pool::new());

/// Memory of `bytes` bytes whose content is initialised but meaningless. It returns to the pool
/// when the tensor that owns it is dropped.
pub(super) fn take(bytes: usize) -> Bytes {
    let buffer = lock().take(bytes);
    held(bytes as isize);
    // SAFETY: the buffer is `bytes` long and initialised: zeroed when it was allocated.
    unsafe { Bytes::from_controller(Box::new(Pooled { buffer: Some(buffer) }), bytes) }
}

/// Tells the counting allocator of the unit tests that a tensor holds a buffer, and takes back what
/// it counted when the pool itself asked for memory.
#[cfg(test)]
fn held(bytes: isize) {
    crate::counting_allocator::count(bytes);
}

#[cfg(not(test))]
fn held(_bytes: isize) {}

fn lock() -> MutexGuard<'static, Pool> {
    // The pool's counters and lists are consistent between any two statements.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Free buffers by size.
struct Pool {
    free: BTreeMap<usize, FreeList>,
    free_bytes: usize,
    used_bytes: usize,
    most_used_bytes: usize,
    /// Counts requests; a free list remembers when it last served one.
    clock: u64,
}

struct FreeList {
    buffers: Vec<Buffer>,
    last_used: u64,
}

impl Pool {
    const fn new() -> Self {
        Self { free: BTreeMap::new(), free_bytes: 0, used_bytes: 0, most_used_bytes: 0, clock: 0 }
    }

    fn take(&mut self, bytes: usize) -> Buffer {
        self.clock += 1;
        self.used_bytes += bytes;
        self.most_used_bytes = self.most_used_bytes.max(self.used_bytes);
        if let Some(list) = self.free.get_mut(&bytes) {
            list.last_used = self.clock;
            if let Some(buffer) = list.buffers.pop() {
                self.free_bytes -= bytes;
                return buffer;
            }
        }
        self.release_stale();
        Buffer::allocate(bytes)
    }

    fn put(&mut self, buffer: Buffer) {
        self.used_bytes -= buffer.bytes;
        self.free_bytes += buffer.bytes;
        let last_used = self.clock;
        self.free
            .entry(buffer.bytes)
            .or_insert(FreeList { buffers: Vec::new(), last_used })
            .buffers
            .push(buffer);
    }

    /// Gives back what was not asked for longest until used and free together are within a 32nd
    /// of the most that was ever used.
    fn release_stale(&mut self) {
        let limit = self.most_used_bytes + self.most_used_bytes / 32;
        while self.used_bytes + self.free_bytes > limit {
            let stalest = self
                .free
                .iter()
                .filter(|(_, list)| !list.buffers.is_empty())
                .min_by_key(|(_, list)| list.last_used)
                .map(|(bytes, _)| *bytes);
            let Some(bytes) = stalest else { break };
            if let Some(list) = self.free.get_mut(&bytes) {
                drop(list.buffers.pop());
                self.free_bytes -= bytes;
            }
        }
    }
}

/// Memory of its own, freed when dropped.
struct Buffer {
    pointer: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a buffer owns its memory alone, like a Box<[u8]>.
unsafe impl Send for Buffer {}

impl Buffer {
    fn layout(bytes: usize) -> Layout {
        match Layout::from_size_align(bytes, ALIGN) {
            Ok(layout) => layout,
            Err(_) => panic!("a tensor of {bytes} bytes is larger than the address space"),
        }
    }

    fn allocate(bytes: usize) -> Self {
        let layout = Self::layout(bytes);
        assert!(bytes > 0, "the pool hands out no empty buffers");
        // SAFETY: the layout has a size above zero.
        let pointer = unsafe { alloc_zeroed(layout) };
        match NonNull::new(pointer) {
            Some(pointer) => {
                held(-(bytes as isize));
                Self { pointer, bytes }
            }
            None => handle_alloc_error(layout),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        held(self.bytes as isize);
        // SAFETY: the memory was allocated with this layout and is dropped once.
        unsafe { dealloc(self.pointer.as_ptr(), Self::layout(self.bytes)) }
    }
}

/// A buffer in use, as the storage of a tensor.
struct Pooled {
    buffer: Option<Buffer>,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            held(-(buffer.bytes as isize));
            lock().put(buffer);
        }
    }
}

impl AllocationController for Pooled {
    fn alloc_align(&self) -> usize {
        ALIGN
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(
        &mut self,
        _policy: AccessPolicy,
    ) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        Ok(match &self.buffer {
            // SAFETY: the buffer owns that many bytes, and `self` is borrowed mutably.
            Some(buffer) => unsafe {
                std::slice::from_raw_parts_mut(buffer.pointer.as_ptr().cast(), buffer.bytes)
            },
            None => &mut [],
        })
    }

    fn memory(&self, _policy: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        Ok(match &self.buffer {
            // SAFETY: the buffer owns that many bytes, and nobody changes them while `self` is
            // borrowed.
            Some(buffer) => unsafe {
                std::slice::from_raw_parts(buffer.pointer.as_ptr().cast(), buffer.bytes)
            },
            None => &[],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_buffer_comes_back_and_stale_ones_go() {
        let mut pool = Pool::new();
        let first = pool.take(1000);
        let address = first.pointer;
        assert_eq!(address.as_ptr() as usize % ALIGN, 0);
        pool.put(first);
        let again = pool.take(1000);
        assert_eq!(again.pointer, address);
        pool.put(again);
        // Another shape: nobody holds the old buffer, which is freed.
        let other = pool.take(1200);
        assert_eq!((pool.free_bytes, pool.used_bytes), (0, 1200));
        pool.put(other);
        // The same shapes over and over allocate nothing new.
        let addresses = |pool: &mut Pool| {
            let buffers: Vec<Buffer> = [500, 300, 300].map(|bytes| pool.take(bytes)).into();
            let mut addresses: Vec<_> = buffers.iter().map(|b| b.pointer).collect();
            buffers.into_iter().for_each(|buffer| pool.put(buffer));
            addresses.sort();
            addresses
        };
        let warm = addresses(&mut pool);
        assert_eq!(addresses(&mut pool), warm);
        assert!(pool.used_bytes + pool.free_bytes <= 1237);
    }
}
