//! The kernels for quantised matrices are tried on each GPU before they are used.

use luthier_core::model::{Quantisation, Storage};
use luthier_core::random;
use tch::{Device, Kind, Tensor};

use super::nf4;
use super::quantised::{Nf4, Tables};
use crate::csrc::{self, Program};
use crate::error::Result;
use crate::{ops, trials};

/// Largest relative difference of a product that bf16 explains.
const BOUND: f64 = 2e-2;

/// Compares the kernels that a quantisation needs with their definitions on a device, and lets matrices use them if they
/// agree. Errors as [`trials::try_on`].
pub fn try_kernels(quantisation: Quantisation, device: Device) -> Result<()> {
    match quantisation {
        Quantisation::None => Ok(()),
        Quantisation::Nf4 => trials::try_program(Program::Nf4, device, nf4_agrees),
        Quantisation::AsStored => trials::try_program(Program::Blocks, device, blocks_agree),
    }
}

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    (0..count).map(|place| random::unit(random::derive(seed, place as u64)) as f32 - 0.5).collect()
}

/// Whether products of `dense`, f32, with few tokens are what `product` gives for them in bf16.
fn products_agree(dense: &Tensor, product: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<bool> {
    let columns = dense.size()[1];
    for tokens in [1, 3, 8] {
        let x = ops::floats(&numbers((tokens * columns) as usize, 7), dense.device())?;
        let x = ops::to_kind(&ops::reshape(&x, &[tokens, columns])?, Kind::BFloat16)?;
        let expected = ops::matmul(&ops::to_kind(&x, Kind::Float)?, &ops::transpose(dense, 0, 1)?)?;
        if !trials::are_close(&product(&x)?, &expected, BOUND)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn nf4_agrees(device: Device) -> Result<bool> {
    let tables = Tables::new(device)?;
    // Whole blocks, and a last block that is not full; more than 256 blocks, so that there are two nested scales.
    for [rows, columns] in [[40, 576], [5, 77]] {
        let values = numbers(rows * columns, 3);
        let Some(expected) = nf4::encode(&values) else { return Ok(false) };
        let expected = Nf4::new(&expected, [rows, columns], &tables, device)?;
        let Some(found) = Nf4::encoded(&ops::floats(&values, device)?, [rows, columns], &tables)? else {
            return Ok(false);
        };
        if !found.is_same(&expected)? {
            return Ok(false);
        }
        for kind in [Kind::Float, Kind::BFloat16] {
            let decoded = csrc::fused_nf4_decode(&expected.matrix(), kind)?;
            if ops::distance(&decoded, &csrc::nf4_look_up(&expected.matrix(), kind)?)? != 0.0 {
                return Ok(false);
            }
        }
        let dense = csrc::nf4_look_up(&expected.matrix(), Kind::Float)?;
        let product = |x: &Tensor| csrc::fused_nf4_product(x, &expected.matrix());
        if columns % 8 == 0 && !products_agree(&dense, &product)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn blocks_agree(device: Device) -> Result<bool> {
    let shape = [24, 512];
    for storage in Storage::ALL.into_iter().filter(|storage| storage.is_quantised()) {
        let Some(length) = storage.bytes((shape[0] * shape[1]) as u64) else { return Ok(false) };
        // Without this bit, two bytes are a half-precision number below 2.
        let some = |place: u64| (random::unit(place) * 256.0) as u8 & 0xbf;
        let bytes = ops::bytes(&(0..length).map(some).collect::<Vec<u8>>(), device)?;
        for kind in [Kind::Float, Kind::BFloat16] {
            let decoded = csrc::fused_blocks_decode(&bytes, storage, shape, kind)?;
            if ops::distance(&decoded, &csrc::blocks_decode(&bytes, storage, shape, kind)?)? != 0.0 {
                return Ok(false);
            }
        }
        let dense = csrc::blocks_decode(&bytes, storage, shape, Kind::Float)?;
        let product = |x: &Tensor| csrc::fused_blocks_product(x, &bytes, storage, shape);
        if !products_agree(&dense, &product)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_for_cuda_encode_decode_and_multiply_like_their_definitions() {
        csrc::emulate_kernels();
        assert!(nf4_agrees(Device::Cpu).unwrap());
        assert!(blocks_agree(Device::Cpu).unwrap());
    }

    #[test]
    fn numbers_that_are_not_finite_are_not_encoded() {
        csrc::emulate_kernels();
        let tables = Tables::new(Device::Cpu).unwrap();
        for odd in [f32::NAN, f32::INFINITY] {
            let mut values = numbers(128, 1);
            values[70] = odd;
            let values = Tensor::from_slice(&values);
            assert!(Nf4::encoded(&values, [2, 64], &tables).unwrap().is_none());
        }
    }

    #[test]
    fn a_wrong_product_is_found() {
        let dense = Tensor::from_slice(&numbers(24 * 64, 5)).view([24, 64]);
        let right = |x: &Tensor| ops::matmul(&x.to_kind(Kind::Float), &dense.tr());
        assert!(products_agree(&dense, &right).unwrap());
        assert!(!products_agree(&dense, &|x| ops::scale(&right(x)?, 1.1)).unwrap());
        assert!(!products_agree(&dense, &|x| ops::scale(&right(x)?, f64::NAN)).unwrap());
    }
}
