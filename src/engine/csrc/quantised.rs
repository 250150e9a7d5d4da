//! Weights that are kept encoded and decoded during a product.

use std::ffi::{c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};

use luthier_core::model::Storage;
use tch::{Kind, Tensor};

use super::memory::scalar_type;
use super::{
    Pointer, checked, luthier_blocks_decode, luthier_few_products, luthier_nf4_decode, luthier_nf4_look_up,
    luthier_nf4_product, luthier_remade_linear, owned, pointer,
};
use crate::error::{EngineError, Result};

/// A matrix `[rows, columns]` as stored in a file.
#[derive(Debug, Clone, Copy)]
pub struct StoredMatrix<'a> {
    /// The whole matrix, row after row.
    pub bytes: &'a [u8],
    /// Encoding of the elements.
    pub storage: Storage,
    pub rows: usize,
    pub columns: usize,
    /// Number of heads of a query or key projection, if the file interleaves their rotary pairs
    /// ([`luthier_core::model::Arrangement::RotaryPairs`]) and they must be separated.
    pub paired_heads: Option<usize>,
}

/// Number of an encoding in `csrc/kernels.h`; `None` if it has none.
pub(super) fn format_number(storage: Storage) -> Option<c_int> {
    match storage {
        Storage::BF16 => Some(0),
        Storage::Q8_0 => Some(1),
        Storage::Q4_0 => Some(2),
        Storage::Q4_1 => Some(3),
        Storage::Q5_0 => Some(4),
        Storage::Q5_1 => Some(5),
        Storage::Q4K => Some(6),
        Storage::Q5K => Some(7),
        Storage::Q6K => Some(8),
        Storage::F32 | Storage::F16 => None,
    }
}

/// Whether [`few_products`] supports the encoding.
pub fn can_multiply(storage: Storage) -> bool {
    format_number(storage).is_some()
}

/// A matrix of [`few_products`].
#[derive(Debug, Clone, Copy)]
pub enum FewMatrix<'a> {
    /// `[rows, columns]`, plain, in the input's type.
    Dense(&'a Tensor),
    /// Decoded during the product.
    Stored(StoredMatrix<'a>),
}

/// `luthier_matrix` of `csrc/shim.cpp`.
#[repr(C)]
pub(super) struct MatrixPointers {
    dense: Pointer,
    bytes: *const u8,
    length: usize,
    format: c_int,
    rows: i64,
    columns: i64,
    heads: i64,
}

impl FewMatrix<'_> {
    fn pointers(&self) -> Result<MatrixPointers> {
        match self {
            Self::Dense(matrix) => {
                let &[rows, columns] = matrix.size().as_slice() else {
                    return Err(EngineError::mismatch("few_products", &[matrix], "it is not a matrix"));
                };
                Ok(MatrixPointers {
                    dense: pointer(matrix),
                    bytes: null(),
                    length: 0,
                    format: 0,
                    rows,
                    columns,
                    heads: 0,
                })
            }
            Self::Stored(matrix) => {
                let Some(format) = format_number(matrix.storage) else {
                    return Err(EngineError::torch("few_products", "no kernel for this encoding"));
                };
                Ok(MatrixPointers {
                    dense: null_mut(),
                    bytes: matrix.bytes.as_ptr(),
                    length: matrix.bytes.len(),
                    format,
                    rows: matrix.rows as i64,
                    columns: matrix.columns as i64,
                    heads: matrix.paired_heads.map_or(0, |heads| heads as i64),
                })
            }
        }
    }
}

/// `x · matrixᵀ` of each matrix, `[tokens, columns]` → `[tokens, rows]`: for few tokens, where reading the matrices
/// dominates. All threads are woken once for all of them. `x` must be plain; no gradient.
pub fn few_products(x: &Tensor, matrices: &[FewMatrix]) -> Result<Vec<Tensor>> {
    let each = matrices.iter().map(FewMatrix::pointers).collect::<Result<Vec<_>>>()?;
    let mut out = vec![null_mut(); each.len()];
    // SAFETY: one live tensor and matrices of live tensors and slices in, as many pointers written on success; the shim
    // checks that each slice holds exactly its matrix.
    checked("few_products", unsafe {
        luthier_few_products(pointer(x), each.as_ptr(), each.len(), out.as_mut_ptr())
    })?;
    Ok(out.into_iter().map(owned).collect())
}

/// Decodes a matrix from `bytes`, a one-dimensional uint8 tensor of llama.cpp's blocks, by tensor operations
/// on its device: `[rows, columns]` of type `kind`.
pub fn blocks_decode(
    bytes: &Tensor,
    storage: Storage,
    [rows, columns]: [usize; 2],
    kind: Kind,
) -> Result<Tensor> {
    let known = format_number(storage).filter(|_| storage.is_quantised()).zip(scalar_type(kind));
    let Some((format, kind)) = known else {
        return Err(EngineError::torch(
            "blocks_decode",
            "this block format or element type is not supported",
        ));
    };
    let mut out = null_mut();
    // SAFETY: one live tensor in, one pointer written on success; the shim checks that the bytes are exactly the matrix.
    checked("blocks_decode", unsafe {
        luthier_blocks_decode(pointer(bytes), format, rows as i64, columns as i64, kind, &raw mut out)
    })?;
    Ok(owned(out))
}

/// A matrix in NF4 with its decoding tables, in the layout of `weights/nf4.rs`; all on one device.
#[derive(Debug, Clone, Copy)]
pub struct Nf4Matrix<'a> {
    /// uint8, two elements per byte.
    pub codes: &'a Tensor,
    /// uint8, one per 64 elements.
    pub scales: &'a Tensor,
    /// f32, one per 256 scales.
    pub nested: &'a Tensor,
    /// One f32.
    pub offset: &'a Tensor,
    /// `[256, 2]` f32: the two elements of each byte of `codes`, unscaled.
    pub pairs: &'a Tensor,
    /// `[256]` f32: the value of each scale code.
    pub dynamic: &'a Tensor,
    pub rows: usize,
    pub columns: usize,
}

/// `luthier_nf4` of `csrc/quantised.h`.
#[repr(C)]
pub(super) struct Nf4Pointers {
    codes: Pointer,
    scales: Pointer,
    nested: Pointer,
    offset: Pointer,
    pairs: Pointer,
    dynamic: Pointer,
    rows: i64,
    columns: i64,
}

impl Nf4Matrix<'_> {
    /// Pointers that are valid as long as the tensors are.
    pub(super) fn pointers(&self) -> Nf4Pointers {
        Nf4Pointers {
            codes: pointer(self.codes),
            scales: pointer(self.scales),
            nested: pointer(self.nested),
            offset: pointer(self.offset),
            pairs: pointer(self.pairs),
            dynamic: pointer(self.dynamic),
            rows: self.rows as i64,
            columns: self.columns as i64,
        }
    }
}

/// Decodes the matrix to `[rows, columns]` of type `kind`, f32 or bf16; on the CPU only.
pub fn nf4_decode(matrix: &Nf4Matrix, kind: Kind) -> Result<Tensor> {
    let Some(kind) = scalar_type(kind) else {
        return Err(EngineError::torch("nf4_decode", "this element type is not supported"));
    };
    let (matrix, mut out) = (matrix.pointers(), null_mut());
    // SAFETY: six live tensors in, one pointer written on success; the shim checks types and sizes.
    checked("nf4_decode", unsafe { luthier_nf4_decode(&raw const matrix, kind, &raw mut out) })?;
    Ok(owned(out))
}

/// As [`nf4_decode`], by tensor operations, on any device.
pub fn nf4_look_up(matrix: &Nf4Matrix, kind: Kind) -> Result<Tensor> {
    let Some(kind) = scalar_type(kind) else {
        return Err(EngineError::torch("nf4_look_up", "this element type is not supported"));
    };
    let (matrix, mut out) = (matrix.pointers(), null_mut());
    // SAFETY: six live tensors in, one pointer written on success; the shim checks types and sizes.
    checked("nf4_look_up", unsafe { luthier_nf4_look_up(&raw const matrix, kind, &raw mut out) })?;
    Ok(owned(out))
}

/// `x · matrixᵀ`, `[tokens, columns]` → `[tokens, rows]`, decoded during the product: for few tokens. `x`
/// must be plain and `columns` a multiple of 64; no gradient.
pub fn nf4_product(x: &Tensor, matrix: &Nf4Matrix) -> Result<Tensor> {
    let (matrix, mut out) = (matrix.pointers(), null_mut());
    // SAFETY: seven live tensors in, one pointer written on success; the shim checks types and sizes.
    checked("nf4_product", unsafe { luthier_nf4_product(pointer(x), &raw const matrix, &raw mut out) })?;
    Ok(owned(out))
}

/// Makes a frozen weight. Called by the thread that runs a backward pass.
type Make = Box<dyn Fn() -> Result<Tensor> + Send>;

extern "C" fn make_weight(owner: *mut c_void, message: *mut c_char, room: usize) -> Pointer {
    // SAFETY: `owner` is the box that `remade_linear` made, which the shim releases only after its last call, and it calls
    // from one thread at a time.
    let make = unsafe { &*owner.cast::<Make>() };
    let told = match catch_unwind(AssertUnwindSafe(make)) {
        // The shim takes ownership of the tensor.
        Ok(Ok(tensor)) => return ManuallyDrop::new(tensor).as_mut_ptr(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the decoding of a weight panicked".to_owned(),
    };
    let length = told.len().min(room.saturating_sub(1));
    // SAFETY: `message` has `room` zeroed bytes, of which the last is not written.
    unsafe { std::ptr::copy_nonoverlapping(told.as_ptr().cast(), message, length) };
    null_mut()
}

extern "C" fn release_make(owner: *mut c_void) {
    // SAFETY: `owner` is the box that `remade_linear` made; the shim calls this once, after the last use.
    drop(unsafe { Box::from_raw(owner.cast::<Make>()) });
}

/// `x · weightᵀ`, `[N, in]` → `[N, out]`, for the frozen weight `[out, in]` that `make` makes, in `x`'s type.
/// The weight is freed after the product and made again for the gradient of `x`, so that the graph keeps no
/// weights.
pub fn remade_linear(x: &Tensor, make: impl Fn() -> Result<Tensor> + Send + 'static) -> Result<Tensor> {
    let make: Make = Box::new(make);
    let owner = Box::into_raw(Box::new(make));
    let mut out = null_mut();
    // SAFETY: one live tensor in, one pointer written on success; the shim takes `owner` over, also when it fails.
    checked("remade_linear", unsafe {
        luthier_remade_linear(pointer(x), make_weight, release_make, owner.cast(), &raw mut out)
    })?;
    Ok(owned(out))
}
