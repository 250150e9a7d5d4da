//! Weight matrices that are kept quantised and decoded on use.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use luthier_core::model::{Arrangement, NF4_BLOCK, Storage, TensorEntry};
use memmap2::Mmap;
use tch::{Device, Kind, Tensor};

use super::dequantise::decode_rows;
use super::loader::restore;
use super::nf4::{self, Encoded};
use crate::error::Result;
use crate::{csrc, ops};

/// With at most this many tokens, reading a matrix takes longer than multiplying with it.
pub(super) const FEW_TOKENS: i64 = 8;

/// A matrix `[out, in]` that is decoded on use.
pub(super) trait Quantised: Send + Sized + 'static {
    /// The whole matrix as type `kind`.
    fn dense(&self, kind: Kind) -> Result<Tensor>;

    /// `x · matrixᵀ` for up to [`FEW_TOKENS`] tokens, contiguous, in the type of `x`, decoded during the product;
    /// `None` if there is no kernel for it.
    fn product(&self, x: &Tensor) -> Result<Option<Tensor>>;

    /// A handle to the same memory.
    fn handle(&self) -> Self;
}

/// `x · matrixᵀ + bias`: `[N, in]` → `[N, out]`. The dense matrix is freed after the product. If `x` has a
/// gradient, the backward pass decodes again.
pub(super) fn linear(matrix: &impl Quantised, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = if let Some(y) = few(matrix, x)? {
        y
    } else if x.requires_grad() {
        let (again, kind) = (matrix.handle(), x.kind());
        csrc::remade_linear(x, move || again.dense(kind))?
    } else {
        return ops::linear(x, &matrix.dense(x.kind())?, bias);
    };
    bias.map_or(Ok(y.shallow_clone()), |bias| ops::add(&y, bias))
}

/// The product without a dense matrix, if `x` is few tokens without gradient and there is a kernel for it.
pub(super) fn few(matrix: &impl Quantised, x: &Tensor) -> Result<Option<Tensor>> {
    let few = x.dim() == 2 && x.size()[0] <= FEW_TOKENS && !x.requires_grad();
    if few { matrix.product(&ops::contiguous(x)?) } else { Ok(None) }
}

/// Whether one kernel of CUDA decodes to this type.
fn is_decoded_at_once(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::BFloat16)
}

/// A matrix in NF4 on one device.
#[derive(Debug)]
pub struct Nf4 {
    /// uint8, two elements per byte.
    codes: Tensor,
    /// uint8, one per 64 elements.
    scales: Tensor,
    /// f32, one per 256 scales.
    nested: Tensor,
    /// One f32.
    offset: Tensor,
    tables: Tables,
    rows: usize,
    columns: usize,
}

/// Tables for decoding NF4 on one device, shared by all matrices.
#[derive(Debug)]
pub(super) struct Tables {
    /// `[256, 2]`: the two elements of every byte, unscaled.
    pairs: Tensor,
    /// `[256]`: the value of each scale code.
    dynamic: Tensor,
}

impl Tables {
    pub fn new(device: Device) -> Result<Self> {
        let pairs: Vec<f32> =
            (0..256_usize).flat_map(|byte| [byte >> 4, byte & 15]).map(|code| nf4::LEVELS[code]).collect();
        Ok(Self {
            pairs: ops::reshape(&ops::floats(&pairs, device)?, &[256, 2])?,
            dynamic: ops::floats(nf4::dynamic_code(), device)?,
        })
    }

    fn handle(&self) -> Self {
        Self { pairs: self.pairs.shallow_clone(), dynamic: self.dynamic.shallow_clone() }
    }
}

impl Nf4 {
    /// `encoded` is the matrix `[rows, columns]`.
    pub(super) fn new(
        encoded: &Encoded,
        [rows, columns]: [usize; 2],
        tables: &Tables,
        device: Device,
    ) -> Result<Self> {
        Ok(Self {
            codes: ops::bytes(&encoded.codes, device)?,
            scales: ops::bytes(&encoded.scales, device)?,
            nested: ops::floats(&encoded.nested, device)?,
            offset: ops::floats(&[encoded.offset], device)?,
            tables: tables.handle(),
            rows,
            columns,
        })
    }

    /// Encodes `values`, the elements in f32, contiguous, on a device that has the kernels; `None` if one is not finite.
    pub(super) fn encoded(
        values: &Tensor,
        [rows, columns]: [usize; 2],
        tables: &Tables,
    ) -> Result<Option<Self>> {
        let device = values.device();
        let bounds = ops::floats(&nf4::BOUNDS, device)?;
        let levels = csrc::Nf4Levels { bounds: &bounds, smallest: nf4::SMALLEST, zero: nf4::ZERO };
        let (codes, largest) = csrc::fused_nf4_encode(values, levels)?;
        let Some(scales) = nf4::encode_scales(&ops::to_floats(&largest)?) else { return Ok(None) };
        Ok(Some(Self {
            codes,
            scales: ops::bytes(&scales.scales, device)?,
            nested: ops::floats(&scales.nested, device)?,
            offset: ops::floats(&[scales.offset], device)?,
            tables: tables.handle(),
            rows,
            columns,
        }))
    }

    /// Its bytes, without the shared tables.
    pub fn bytes(&self) -> u64 {
        let Self { codes, scales, nested, offset, tables: _, rows: _, columns: _ } = self;
        [codes, scales, nested, offset].into_iter().map(ops::bytes_of).sum()
    }

    /// Whether another matrix has the same codes and scales.
    pub(super) fn is_same(&self, other: &Self) -> Result<bool> {
        let parts = |matrix: &Self| {
            [&matrix.codes, &matrix.scales, &matrix.nested, &matrix.offset].map(Tensor::shallow_clone)
        };
        for (own, other) in parts(self).iter().zip(&parts(other)) {
            if ops::distance(own, other)? != 0.0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn matrix(&self) -> csrc::Nf4Matrix<'_> {
        csrc::Nf4Matrix {
            codes: &self.codes,
            scales: &self.scales,
            nested: &self.nested,
            offset: &self.offset,
            pairs: &self.tables.pairs,
            dynamic: &self.tables.dynamic,
            rows: self.rows,
            columns: self.columns,
        }
    }
}

impl Quantised for Nf4 {
    fn dense(&self, kind: Kind) -> Result<Tensor> {
        let device = self.codes.device();
        if device == Device::Cpu {
            csrc::nf4_decode(&self.matrix(), kind)
        } else if csrc::has_program(csrc::Program::Nf4, device) && is_decoded_at_once(kind) {
            csrc::fused_nf4_decode(&self.matrix(), kind)
        } else {
            csrc::nf4_look_up(&self.matrix(), kind)
        }
    }

    fn product(&self, x: &Tensor) -> Result<Option<Tensor>> {
        if csrc::has_program(csrc::Program::Nf4, self.codes.device()) && csrc::in_eights(x) {
            return csrc::fused_nf4_product(x, &self.matrix()).map(Some);
        }
        if !csrc::is_plain(x) || !self.columns.is_multiple_of(NF4_BLOCK) {
            return Ok(None);
        }
        let y = csrc::nf4_product(&ops::to_kind(x, Kind::Float)?, &self.matrix())?;
        ops::to_kind(&y, x.kind()).map(Some)
    }

    fn handle(&self) -> Self {
        Self {
            codes: self.codes.shallow_clone(),
            scales: self.scales.shallow_clone(),
            nested: self.nested.shallow_clone(),
            offset: self.offset.shallow_clone(),
            tables: self.tables.handle(),
            rows: self.rows,
            columns: self.columns,
        }
    }
}

/// A matrix in llama.cpp's blocks, as stored in a file.
#[derive(Debug)]
pub struct Stored {
    place: Place,
    storage: Storage,
    arrangement: Arrangement,
    rows: usize,
    columns: usize,
}

#[derive(Debug)]
enum Place {
    /// In the mapped file.
    Mapped { map: Arc<Mmap>, bytes: Range<usize> },
    /// Copied to a device: uint8, one-dimensional.
    Device(Tensor),
}

impl Stored {
    /// A matrix in a mapped file; `None` if it is incomplete or does not have whole rows.
    pub(super) fn new(map: &Arc<Mmap>, entry: &TensorEntry) -> Option<Self> {
        let &[rows, columns] = entry.shape.as_slice() else { return None };
        if entry.arrangement == Arrangement::Transposed {
            return None;
        }
        let length = usize::try_from(entry.storage.bytes(columns as u64)?).ok()?.checked_mul(rows)?;
        let start = usize::try_from(entry.offset).ok()?;
        let bytes = start..start.checked_add(length)?;
        map.get(bytes.clone())?;
        let place = Place::Mapped { map: Arc::clone(map), bytes };
        Some(Self { place, storage: entry.storage, arrangement: entry.arrangement, rows, columns })
    }

    /// Copies it to a device. The CPU uses the map directly.
    pub(super) fn on(self, device: Device) -> Result<Self> {
        match self.place {
            Place::Mapped { map, bytes } if device != Device::Cpu => {
                let length = bytes.len() as i64;
                let borrowed = csrc::borrow_map(&map, bytes.start, &[length], Kind::Uint8)?;
                let borrowed = borrowed.map_or_else(|| ops::bytes(&[], Device::Cpu), Ok)?;
                Ok(Self { place: Place::Device(ops::to_device(&borrowed, device)?), ..self })
            }
            place => Ok(Self { place, ..self }),
        }
    }

    /// Whether groups of elements share scales.
    pub(super) fn is_quantised(&self) -> bool {
        self.storage.is_quantised()
    }

    /// Whether there is a kernel that multiplies with the stored form.
    pub(super) fn can_multiply(&self) -> bool {
        // The kernels' block size; llama.cpp's blocks are not longer.
        let block = self.storage.block().elements.max(32);
        csrc::can_multiply(self.storage)
            && self.columns.is_multiple_of(block)
            && matches!(self.place, Place::Mapped { .. })
    }

    /// The matrix for [`csrc::few_products`], if there is a kernel for it. Rows that the file orders by part stay in that
    /// order.
    fn few_matrix(&self) -> Option<csrc::FewMatrix<'_>> {
        let Place::Mapped { map, bytes } = &self.place else { return None };
        let paired_heads = match self.arrangement {
            Arrangement::RotaryPairs { heads } => Some(heads),
            Arrangement::Plain | Arrangement::Transposed | Arrangement::ByPart { .. } => None,
        };
        let matrix = csrc::StoredMatrix {
            bytes: map.get(bytes.clone()).unwrap_or_default(),
            storage: self.storage,
            rows: self.rows,
            columns: self.columns,
            paired_heads,
        };
        self.can_multiply().then_some(csrc::FewMatrix::Stored(matrix))
    }

    /// As [`Self::few_matrix`], if no row has to be put in another place afterwards.
    pub(super) fn in_order(&self) -> Option<csrc::FewMatrix<'_>> {
        self.few_matrix().filter(|_| !matches!(self.arrangement, Arrangement::ByPart { .. }))
    }

    /// A product's columns, which are in the order of the stored rows, in the architecture's.
    fn restored_columns(&self, y: Tensor) -> Result<Tensor> {
        if self.arrangement == Arrangement::Plain {
            return Ok(y);
        }
        let restored = restore(ops::transpose(&y, 0, 1)?, self.arrangement)?;
        ops::contiguous(&ops::transpose(&restored, 0, 1)?)
    }

    pub fn bytes(&self) -> u64 {
        match &self.place {
            Place::Mapped { bytes, .. } => bytes.len() as u64,
            Place::Device(bytes) => ops::bytes_of(bytes),
        }
    }
}

impl Quantised for Stored {
    fn dense(&self, kind: Kind) -> Result<Tensor> {
        let shape = [self.rows as i64, self.columns as i64];
        match &self.place {
            Place::Mapped { map, bytes } => {
                let bytes = map.get(bytes.clone()).unwrap_or_default();
                let (storage, columns, arrangement) = (self.storage, self.columns, self.arrangement);
                if kind == Kind::BFloat16 {
                    return csrc::fill(&shape, |out| {
                        decode_rows(storage, bytes, columns, arrangement, out, bf16::from_f32)
                    });
                }
                let single = csrc::fill(&shape, |out| {
                    decode_rows(storage, bytes, columns, arrangement, out, |value: f32| value)
                })?;
                ops::to_kind(&single, kind)
            }
            Place::Device(bytes) => {
                let shape = [self.rows, self.columns];
                let at_once =
                    csrc::has_program(csrc::Program::Blocks, bytes.device()) && is_decoded_at_once(kind);
                let decode = if at_once { csrc::fused_blocks_decode } else { csrc::blocks_decode };
                restore(decode(bytes, self.storage, shape, kind)?, self.arrangement)
            }
        }
    }

    fn product(&self, x: &Tensor) -> Result<Option<Tensor>> {
        if let Place::Device(bytes) = &self.place {
            if !csrc::has_program(csrc::Program::Blocks, bytes.device()) || !csrc::in_eights(x) {
                return Ok(None);
            }
            let y = csrc::fused_blocks_product(x, bytes, self.storage, [self.rows, self.columns])?;
            return self.restored_columns(y).map(Some);
        }
        let Some(matrix) = self.few_matrix().filter(|_| csrc::is_plain(x)) else { return Ok(None) };
        let y = csrc::few_products(x, &[matrix])?.swap_remove(0);
        match self.arrangement {
            // The kernel ignores this order.
            Arrangement::ByPart { .. } => self.restored_columns(y).map(Some),
            _ => Ok(Some(y)),
        }
    }

    fn handle(&self) -> Self {
        let place = match &self.place {
            Place::Mapped { map, bytes } => Place::Mapped { map: Arc::clone(map), bytes: bytes.clone() },
            Place::Device(bytes) => Place::Device(bytes.shallow_clone()),
        };
        Self { place, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::dequantise::tests::some_blocks;
    use super::*;

    const BLOCKS: [Storage; 8] = [
        Storage::Q8_0,
        Storage::Q4_0,
        Storage::Q4_1,
        Storage::Q5_0,
        Storage::Q5_1,
        Storage::Q4K,
        Storage::Q5K,
        Storage::Q6K,
    ];

    const ARRANGEMENTS: [Arrangement; 3] = [
        Arrangement::Plain,
        Arrangement::RotaryPairs { heads: 3 },
        Arrangement::ByPart { groups: 2, shared: 4 },
    ];

    fn some_floats(count: usize, seed: u64) -> Vec<f32> {
        let place = |i: usize| seed * 1_000_003 + i as u64;
        (0..count).map(|i| luthier_core::random::unit(place(i)) as f32 - 0.5).collect()
    }

    fn some_tensor(rows: i64, columns: i64, seed: u64) -> Tensor {
        Tensor::from_slice(&some_floats((rows * columns) as usize, seed)).view([rows, columns])
    }

    /// A matrix in NF4, and the result of the plain decoder.
    fn nf4(rows: usize, columns: usize) -> (Nf4, Tensor) {
        let encoded = nf4::encode(&some_floats(rows * columns, 1)).unwrap();
        let mut values = vec![0.0; rows * columns];
        nf4::decode(&encoded, &mut values);
        let tables = Tables::new(Device::Cpu).unwrap();
        let matrix = Nf4::new(&encoded, [rows, columns], &tables, Device::Cpu).unwrap();
        (matrix, Tensor::from_slice(&values).view([rows as i64, columns as i64]))
    }

    /// A matrix in blocks at some place in a file, and the result of the plain decoder.
    fn stored(storage: Storage, arrangement: Arrangement) -> (Stored, Tensor) {
        let (rows, columns, offset) = (24_usize, 768_usize, 32);
        let bytes = some_blocks(storage, rows * columns);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0; offset]).unwrap();
        file.write_all(&bytes).unwrap();
        let entry = TensorEntry {
            shape: vec![rows, columns],
            storage,
            file: 0,
            offset: offset as u64,
            bytes: bytes.len() as u64,
            arrangement,
        };
        let mut values = vec![0.0; rows * columns];
        super::super::dequantise::decode(storage, &bytes, &mut values);
        let order: Vec<i64> = (0..rows).map(|row| arrangement.source_row(row, rows) as i64).collect();
        let dense = Tensor::from_slice(&values).view([rows as i64, columns as i64]);
        let dense = dense.index_select(0, &Tensor::from_slice(&order));
        (Stored::new(&csrc::map(&file).unwrap(), &entry).unwrap(), dense)
    }

    fn on_a_device(matrix: &Stored) -> Stored {
        let Place::Mapped { map, bytes } = &matrix.place else { panic!("it is mapped") };
        let bytes = ops::bytes(&map[bytes.clone()], Device::Cpu).unwrap();
        Stored { place: Place::Device(bytes), ..matrix.handle() }
    }

    #[test]
    fn nf4_is_decoded_to_the_bit_by_kernel_and_by_operations() {
        for (rows, columns) in [(8, 64), (33, 50), (5, 77), (1, 1), (300, 192), (0, 64)] {
            let (matrix, expected) = nf4(rows, columns);
            for kind in [Kind::Float, Kind::BFloat16] {
                let expected = expected.to_kind(kind);
                assert_eq!(csrc::nf4_decode(&matrix.matrix(), kind).unwrap(), expected, "{rows} {columns}");
                assert_eq!(csrc::nf4_look_up(&matrix.matrix(), kind).unwrap(), expected, "{rows} {columns}");
            }
            let bytes = luthier_core::model::nf4_bytes((rows * columns) as u64);
            assert_eq!(matrix.bytes(), bytes, "{rows} {columns}");
        }
    }

    #[test]
    fn blocks_are_decoded_to_the_bit_by_rows_and_by_operations() {
        for storage in BLOCKS {
            for arrangement in ARRANGEMENTS {
                let (matrix, expected) = stored(storage, arrangement);
                for kind in [Kind::Float, Kind::BFloat16] {
                    let expected = expected.to_kind(kind);
                    assert_eq!(matrix.dense(kind).unwrap(), expected, "{storage} {arrangement:?}");
                    let elsewhere = on_a_device(&matrix);
                    assert_eq!(elsewhere.dense(kind).unwrap(), expected, "{storage} {arrangement:?}");
                    assert_eq!(elsewhere.bytes(), matrix.bytes());
                }
            }
        }
    }

    /// Compares values and gradients of `matrix` with those of its dense equivalent.
    fn assert_plain(name: &str, matrix: &impl Quantised, dense: &Tensor) {
        let (rows, columns) = dense.size2().unwrap();
        for kind in [Kind::Float, Kind::BFloat16] {
            // The result is rounded. bf16 also rounds the dense matrix, which a kernel for few tokens does
            // not use.
            let bound = if kind == Kind::Float { 2e-6 } else { 2e-2 };
            let dense = dense.to_kind(kind);
            let bias = some_tensor(1, rows, 2).view([rows]).to_kind(kind);
            for (tokens, wants_gradient) in [(1, false), (3, true), (8, false), (20, false), (20, true)] {
                let input =
                    || some_tensor(tokens, columns, 3).to_kind(kind).set_requires_grad(wants_gradient);
                let (x, twin) = (input(), input());
                for bias in [None, Some(&bias)] {
                    let found = linear(matrix, &x, bias).unwrap();
                    let expected = ops::linear(&twin, &dense, bias).unwrap();
                    assert_eq!((found.kind(), found.size()), (kind, vec![tokens, rows]));
                    let scale = twin.abs().matmul(&dense.abs().tr()).max().double_value(&[]);
                    let error = (&found - &expected).abs().max().double_value(&[]);
                    assert!(error <= bound * scale, "{name} {kind:?} {tokens}: {error} of {scale}");
                    assert_eq!(found.requires_grad(), wants_gradient);
                    if wants_gradient {
                        let direction = some_tensor(tokens, rows, 4).to_kind(kind);
                        csrc::backward(&[&found], &[Some(&direction)]).unwrap();
                        (expected * &direction).sum(Kind::Float).backward();
                    }
                }
                if wants_gradient {
                    assert_eq!(x.grad(), twin.grad(), "{name} {kind:?}: gradient");
                }
            }
        }
    }

    #[test]
    fn a_quantised_layer_equals_its_dense_equivalent() {
        for (rows, columns) in [(48, 128), (10, 50)] {
            let (matrix, dense) = nf4(rows, columns);
            assert_plain("NF4", &matrix, &dense);
        }
        for storage in BLOCKS {
            for arrangement in ARRANGEMENTS {
                let (matrix, dense) = stored(storage, arrangement);
                assert_plain(storage.name(), &matrix, &dense);
                assert_plain(storage.name(), &on_a_device(&matrix), &dense);
            }
        }
    }

    #[test]
    fn a_matrix_whose_scale_is_not_a_number_is_not_the_same() {
        let (matrix, _) = nf4(8, 64);
        assert!(matrix.is_same(&matrix).unwrap());
        let broken = Nf4 { offset: Tensor::from_slice(&[f32::NAN]), ..matrix.handle() };
        assert!(!broken.is_same(&matrix).unwrap());
    }

    #[test]
    fn an_incomplete_matrix_is_refused() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; 680]).unwrap();
        let map = csrc::map(&file).unwrap();
        let entry = |shape: &[usize], offset: u64| {
            let (storage, bytes, arrangement) = (Storage::Q8_0, 680, Arrangement::Plain);
            TensorEntry { shape: shape.to_vec(), storage, file: 0, offset, bytes, arrangement }
        };
        assert!(Stored::new(&map, &entry(&[10, 64], 0)).is_some());
        for (shape, offset) in [(&[10, 64][..], 1), (&[11, 64], 0), (&[10, 48], 0), (&[640], 0)] {
            assert!(Stored::new(&map, &entry(shape, offset)).is_none(), "{shape:?} {offset}");
        }
        assert!(Stored::new(&map, &entry(&[usize::MAX, 64], 0)).is_none());
        assert!(Stored::new(&map, &entry(&[10, 64], u64::MAX)).is_none());
        let transposed = TensorEntry { arrangement: Arrangement::Transposed, ..entry(&[10, 64], 0) };
        assert!(Stored::new(&map, &transposed).is_none());
    }
}
