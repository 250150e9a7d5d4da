//! CUDA's flash attention over documents is tried on each device, before it is used: what a GPU, its driver and libtorch make of it
//! shows only there.

use tch::{Device, Kind, Tensor};

use super::documents::Documents;
use crate::error::{EngineError, Result};
use crate::layers::Document;
use crate::{csrc, ops, trials};

/// Scale of the scores.
const SCALE: f64 = 0.2;
/// Largest relative difference that bf16 explains.
const BOUND: f64 = 3e-2;

/// Compares flash attention on a device with its definition, and lets later forward passes use it if the two agree. Errors
/// as [`trials::try_on`].
pub fn try_flash_attention(device: Device) -> Result<()> {
    if !device.is_cuda() {
        return Ok(());
    }
    let flash = |parts: [&Tensor; 3], documents: &Documents, window: Option<i64>| {
        documents.flash_attention(parts, 0, window, SCALE)
    };
    let trial = || attends_rightly(device, Kind::BFloat16, &[None, Some(3)], &flash);
    trials::try_on(device, "flash attention over documents", trial, || csrc::allow_flash_attention(device))
}

/// Attention of query, key and value over documents, with a window.
type Attend<'a> = dyn Fn([&Tensor; 3], &Documents, Option<i64>) -> Result<Tensor> + 'a;

/// Whether a way of attending gives what its definition gives, and the same gradients: for documents of different
/// lengths, tokens that two of them share, and fewer heads of keys than of queries.
fn attends_rightly(device: Device, kind: Kind, windows: &[Option<i64>], attend: &Attend) -> Result<bool> {
    const HEADS: i64 = 4;
    const GROUPS: i64 = 2;
    const SIZE: i64 = 32;
    // Seven tokens of a first document, of which the second sees five before its own four.
    let second = Document { shared: std::iter::once(0..5).collect(), own: 4 };
    let documents = Documents::new(vec![Document { shared: Vec::new(), own: 7 }, second], device)?;
    let numbers = |heads: i64, step: f32| {
        let all: Vec<f32> = (0..11 * heads * SIZE).map(|index| (index as f32 * step).sin()).collect();
        let x = ops::reshape(&ops::floats(&all, device)?, &[11, heads, SIZE])?;
        ops::to_kind(&ops::to_kind(&x, kind)?, Kind::Float)
    };
    let parts = [numbers(HEADS, 0.37)?, numbers(GROUPS, 0.71)?, numbers(GROUPS, 0.53)?];
    let weights = ops::reshape(&numbers(HEADS, 0.19)?, &[11, HEADS * SIZE])?;
    let run = |kind: Kind, attend: &Attend, window: Option<i64>| -> Result<Vec<Tensor>> {
        let leaves: Vec<Tensor> =
            parts.iter().map(|part| ops::leaf(&ops::to_kind(part, kind)?)).collect::<Result<_>>()?;
        let mixed = attend([&leaves[0], &leaves[1], &leaves[2]], &documents, window)?;
        let mixed = ops::to_kind(&mixed, Kind::Float)?;
        csrc::backward(&[&ops::sum(&ops::multiply(&mixed, &weights)?)?], &[None])?;
        let mut found = vec![ops::detach(&mixed)?];
        for leaf in &leaves {
            let gradient =
                ops::gradient(leaf)?.ok_or_else(|| EngineError::torch("attention", "no gradient"))?;
            found.push(ops::to_kind(&gradient, Kind::Float)?);
        }
        Ok(found)
    };
    let openly = |[query, key, value]: [&Tensor; 3], documents: &Documents, window: Option<i64>| {
        documents.seen_after(0, |seen| {
            let form = ops::ScoreForm { scale: SCALE, cap: None, slopes: None };
            let laid =
                |x: &Tensor, heads: i64| ops::transpose(&ops::reshape(x, &[1, -1, heads, SIZE])?, 1, 2);
            let (mut row, mut at, mut mixed) = (0, 0, Vec::new());
            for (&before, &own) in seen.before.iter().zip(seen.own) {
                let length = (before + own) as usize;
                let keys = ops::integers(&seen.rows[at..at + length], device)?;
                let query = laid(&ops::narrow(query, 0, row, own)?, HEADS)?;
                let key = laid(&ops::select_rows(key, 0, &keys)?, GROUPS)?;
                let value = laid(&ops::select_rows(value, 0, &keys)?, GROUPS)?;
                let mask = ops::causal_mask(&[before], own, before + own, window, device)?;
                let one = ops::attention_openly(&query, &key, &value, Some(&mask), form)?;
                mixed.push(ops::reshape(&ops::transpose(&one, 1, 2)?, &[own, HEADS * SIZE])?);
                (row, at) = (row + own, at + length);
            }
            ops::concatenate(&mixed, 0)
        })
    };
    for &window in windows {
        let (found, expected) = (run(kind, attend, window)?, run(Kind::Float, &openly, window)?);
        for (found, expected) in found.iter().zip(&expected) {
            if !trials::are_close(found, expected, BOUND)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csrc::Seen;

    #[test]
    fn attention_is_tried_before_it_is_used() {
        let own =
            |[query, key, value]: [&Tensor; 3], seen: Seen| csrc::attention(query, key, value, seen, SCALE);
        let right = |parts: [&Tensor; 3], documents: &Documents, _: Option<i64>| {
            documents.seen_after(0, |seen| own(parts, seen))
        };
        let tried = |kind, windows: &[Option<i64>], attend: &Attend| {
            attends_rightly(Device::Cpu, kind, windows, attend).unwrap()
        };
        assert!(tried(Kind::Float, &[None], &right));
        assert!(tried(Kind::BFloat16, &[None], &right));
        assert!(!tried(Kind::Float, &[Some(3)], &right), "a window is ignored");
        let forgets_shared = |parts: [&Tensor; 3], documents: &Documents, _: Option<i64>| {
            documents.seen_after(0, |seen| own(parts, Seen { before: &[0, 0], rows: &[], ..seen }))
        };
        assert!(!tried(Kind::Float, &[None], &forgets_shared));
        let not_a_number = |parts: [&Tensor; 3], documents: &Documents, window: Option<i64>| {
            ops::scale(&right(parts, documents, window)?, f64::NAN)
        };
        assert!(!tried(Kind::Float, &[None], &not_a_number));
    }

    #[test]
    fn a_processor_has_no_flash_attention() {
        try_flash_attention(Device::Cpu).unwrap();
        assert!(!csrc::has_flash_attention(Device::Cpu, 64, Kind::BFloat16));
    }
}
