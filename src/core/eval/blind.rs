//! Which answer stands on which side.

use sha2::{Digest, Sha256};

use super::verdict::Contender;

/// Left and right of a blind comparison: the same for the same seed and prompt, whoever asks and whenever,
/// and as unpredictable as a coin to the person who judges.
pub fn sides(seed: u64, prompt: u64, contenders: [Contender; 2]) -> [Contender; 2] {
    let mut digest = Sha256::new();
    digest.update(b"luthier review side");
    digest.update(seed.to_le_bytes());
    digest.update(prompt.to_le_bytes());
    let [first, second] = contenders;
    if digest.finalize()[0] & 1 == 0 { [first, second] } else { [second, first] }
}
