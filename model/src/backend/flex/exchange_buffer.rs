//! The elements of a CPU tensor while ranks exchange them.

use altiplano_comm::Buffer;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Element};
use bytemuck::Pod;

use super::{contiguous, new, new_like, slice, slice_mut};

/// A tensor that an exchange owns while it goes on, so nothing else can read, change or reuse its
/// storage.
pub(crate) struct ExchangeBuffer<E> {
    tensor: FlexTensor,
    /// The first element of the storage of `tensor`, which nobody else holds.
    first: *mut E,
    length: usize,
}

// SAFETY: the pointer is into the storage that `tensor` alone holds, and a tensor may be sent.
unsafe impl<E: Send> Send for ExchangeBuffer<E> {}

impl<E: Element + Pod> ExchangeBuffer<E> {
    /// The elements of `x`: its own storage where nobody else holds it, a copy otherwise.
    pub fn of(x: FlexTensor) -> Self {
        let mut x = contiguous(x);
        let whole = x.layout().num_elements() * size_of::<E>() == x.bytes().len();
        if whole && x.try_storage_mut::<E>().is_some() {
            return Self::owning(x);
        }
        let mut y = new_like(&x);
        slice_mut::<E>(&mut y, "copy").copy_from_slice(slice(&x));
        Self::owning(y)
    }

    /// Elements to be written; what they hold is meaningless.
    pub fn new(dims: &[usize], dtype: DType) -> Self {
        Self::owning(new(dims, dtype))
    }

    fn owning(mut tensor: FlexTensor) -> Self {
        let elements = slice_mut::<E>(&mut tensor, "exchange");
        let (first, length) = (elements.as_mut_ptr(), elements.len());
        Self { tensor, first, length }
    }

    /// Copies the elements of `x` to those from `start` on.
    pub fn write(&mut self, start: usize, x: FlexTensor) {
        let x = contiguous(x);
        let x: &[E] = slice(&x);
        assert!(start + x.len() <= self.length, "exchange: a part is too long");
        // SAFETY: the range is inside the storage, which nobody else holds, and `x` is another one.
        unsafe { std::ptr::copy_nonoverlapping(x.as_ptr(), self.first.add(start), x.len()) };
    }

    /// The tensor, when the exchange is over.
    pub fn into_tensor(self) -> FlexTensor {
        self.tensor
    }
}

// SAFETY: the storage is on the heap and stays there when the tensor is moved. The one pointer to it is
// taken once, from an exclusive reference, and nothing reads the storage through the tensor before
// `into_tensor`. Storage is initialised when it is allocated.
unsafe impl<E: Element + Pod + altiplano_comm::Element> Buffer<E> for ExchangeBuffer<E> {
    fn len(&self) -> usize {
        self.length
    }

    fn as_ptr(&self) -> *const E {
        self.first
    }

    fn as_mut_ptr(&mut self) -> *mut E {
        self.first
    }
}
