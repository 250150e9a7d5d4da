//! A fingerprint of base weights that is fast to compute. It ties an adapter to the weights on which it was
//! trained.
//!
//! It is the SHA-256 of the following, in this order, with its length before everything of variable length: a
//! version line, the architecture as JSON, the sizes of the weight files, and for each tensor in order of
//! name its name, encoding, shape and length and up to [`SAMPLE`] bytes of its data, from a place that
//! depends only on its name. If there are more than [`MAX_SAMPLED`] tensors, evenly spaced ones are sampled.
//! A model of 16 GB has some 300 tensors, so 75 KB are read.
//!
//! Paths, file names and the spelling of the configuration are left out, so a moved copy keeps its
//! fingerprint. Weights that differ only outside all samples have the same fingerprint; training and
//! quantising change more than that.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use indexmap::IndexMap;
use sha2::{Digest, Sha256};

use super::TensorEntry;
use super::architecture::Architecture;
use super::error::ModelError;
use super::files;
use crate::hash::hex;

/// Bytes sampled per tensor.
const SAMPLE: u64 = 256;

/// Most tensors sampled.
const MAX_SAMPLED: usize = 1024;

/// 64 hex digits.
pub(super) fn of(
    architecture: &Architecture,
    tensors: &IndexMap<String, TensorEntry>,
    paths: &[PathBuf],
) -> Result<String, ModelError> {
    let mut hash = Sha256::new();
    hash.update(b"luthier model fingerprint 1\n");
    let description = serde_json::to_vec(architecture).map_err(|error| ModelError::Settings {
        file: paths.first().map_or_else(|| super::Shown::new("model"), Into::into),
        problem: format!("the architecture cannot be described: {error}"),
    })?;
    field(&mut hash, &description);
    let mut opened = Vec::with_capacity(paths.len());
    for path in paths {
        let (file, size) = files::open(path)?;
        hash.update(size.to_le_bytes());
        opened.push((file, path));
    }
    let mut order: Vec<(&String, &TensorEntry)> = tensors.iter().collect();
    order.sort_unstable_by_key(|(name, _)| *name);
    let stride = order.len().div_ceil(MAX_SAMPLED).max(1);
    for (index, (name, entry)) in order.into_iter().enumerate() {
        field(&mut hash, name.as_bytes());
        field(&mut hash, entry.storage.name().as_bytes());
        hash.update((entry.shape.len() as u64).to_le_bytes());
        for &length in &entry.shape {
            hash.update((length as u64).to_le_bytes());
        }
        hash.update(entry.bytes.to_le_bytes());
        if index.is_multiple_of(stride)
            && let Some((file, path)) = opened.get(entry.file)
        {
            let sample = sample(file, name, entry)
                .map_err(|source| ModelError::Read { file: (*path).into(), source })?;
            field(&mut hash, &sample);
        }
    }
    Ok(hex(hash.finalize()))
}

fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn sample(file: &File, name: &str, entry: &TensorEntry) -> std::io::Result<Vec<u8>> {
    let length = entry.bytes.min(SAMPLE);
    let mut bytes = vec![0; length as usize];
    let place = Sha256::digest(name.as_bytes());
    let place = place.iter().take(8).fold(0_u64, |number, &byte| (number << 8) | u64::from(byte));
    let within = place % (entry.bytes - length + 1);
    file.read_exact_at(&mut bytes, entry.offset + within)?;
    Ok(bytes)
}
