//! Finds nearly equal rows without comparing every pair.
//!
//! Each text becomes a set of overlapping pieces of eight characters. One-permutation MinHash (Li, Owen and
//! Zhang 2012), with empty bins filled from the next (Shrivastava and Li 2014), turns the set into a
//! signature. The fraction of equal entries in two signatures estimates the fraction of common pieces
//! (Jaccard). Two rows are compared if they agree in a band of the signature.

use std::collections::HashMap;

use crate::random::mix_pair;

const PIECE: usize = 8;
/// Only this many characters of a text are used.
const MAX_CHARACTERS: usize = 20_000;
/// Shortest text compared: fewer pieces give too poor an estimate.
const MIN_CHARACTERS: usize = 40;
/// Base of the polynomial that hashes a piece: odd, so that no character is lost.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
const BINS: usize = 128;
/// Bins in a band. With 16 bands, two rows with 0.8 of their pieces in common are compared in 95 of 100
/// cases, with 0.5 in 6.
const BAND: usize = 8;
/// Most earlier rows with the same band value that a new row is compared with.
const MAX_CANDIDATES: usize = 8;
/// Fraction of common pieces from which rows count as nearly equal.
const NEARLY: f64 = 0.8;

/// The MinHash signature of a text.
pub(super) type Signature = Box<[u32; BINS]>;

/// The signature of a normalised text; `None` if it is too short.
pub(super) fn signature(text: &str) -> Option<Signature> {
    let characters: Vec<u32> = text.chars().take(MAX_CHARACTERS).map(u32::from).collect();
    if characters.len() < MIN_CHARACTERS {
        return None;
    }
    let mut least: [Option<u32>; BINS] = [None; BINS];
    // The pieces overlap, so that the hash of one follows from that of the one before.
    let leaving = BASE.wrapping_pow(PIECE as u32);
    let mut rolling = 0_u64;
    for (end, &character) in characters.iter().enumerate() {
        rolling = rolling.wrapping_mul(BASE).wrapping_add(u64::from(character) + 1);
        if end >= PIECE {
            let first = u64::from(characters[end - PIECE]) + 1;
            rolling = rolling.wrapping_sub(first.wrapping_mul(leaving));
        }
        if end + 1 < PIECE {
            continue;
        }
        let hash = mix_pair(rolling, 0);
        let (bin, value) = ((hash >> 57) as usize, hash as u32);
        let least = &mut least[bin];
        *least = Some(least.map_or(value, |known| known.min(value)));
    }
    let mut signature = Box::new([0; BINS]);
    for (bin, slot) in signature.iter_mut().enumerate() {
        let found = (0..BINS).find_map(|distance| Some((distance, least[(bin + distance) % BINS]?)));
        if let Some((distance, value)) = found {
            *slot = value.wrapping_add((distance as u32).wrapping_mul(0x9e37_79b9));
        }
    }
    Some(signature)
}

#[derive(Default)]
pub(super) struct Seen {
    bands: HashMap<(usize, u64), Vec<usize>>,
    signatures: Vec<(usize, Signature)>,
}

impl Seen {
    /// The nearest earlier row that is nearly equal, with the fraction of common pieces. Adds `row` to the
    /// rows seen.
    pub(super) fn nearest(&mut self, row: usize, signature: Signature) -> Option<(usize, f64)> {
        let mut best: Option<(usize, f64)> = None;
        let entry = self.signatures.len();
        for (band, values) in signature.chunks(BAND).enumerate() {
            let key = values.iter().fold(0, |hash, &value| mix_pair(hash, u64::from(value)));
            let others = self.bands.entry((band, key)).or_default();
            for &other in others.iter() {
                let (earlier, known) = &self.signatures[other];
                let equal = known.iter().zip(signature.iter()).filter(|(left, right)| left == right).count();
                let share = equal as f64 / BINS as f64;
                if share >= NEARLY && best.is_none_or(|(_, found)| share > found) {
                    best = Some((*earlier, share));
                }
            }
            if others.len() < MAX_CANDIDATES {
                others.push(entry);
            }
        }
        self.signatures.push((row, signature));
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seed: u64, words: usize) -> Vec<String> {
        (0..words as u64).map(|word| format!("w{}", mix_pair(seed, word) % 5000)).collect()
    }

    #[test]
    fn nearly_equal_texts_are_found_and_others_are_not() {
        let mut seen = Seen::default();
        for row in 0..200 {
            let found = seen.nearest(row, signature(&text(row as u64, 60).join(" ")).unwrap());
            assert_eq!(found, None, "{row}");
        }
        let mut changed = text(17, 60);
        changed[30] = "other".to_owned();
        let (row, share) = seen.nearest(200, signature(&changed.join(" ")).unwrap()).unwrap();
        assert_eq!(row, 17);
        assert!(share > 0.8, "{share}");
        let mut half = text(18, 60);
        half[..30].clone_from_slice(&text(900, 30));
        assert_eq!(seen.nearest(201, signature(&half.join(" ")).unwrap()), None);
    }

    #[test]
    fn short_texts_are_not_compared() {
        assert!(signature("Yes, of course.").is_none());
        assert!(signature(&"日".repeat(MIN_CHARACTERS)).is_some());
    }
}
