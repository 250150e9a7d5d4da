//! Which answer is shown on which side.

use sha2::{Digest, Sha256};

use super::verdict::Contender;

/// The left and right answer of a blind comparison. They depend only on seed and prompt, and the judge cannot
/// predict them.
pub fn sides(seed: u64, prompt: u64, contenders: [Contender; 2]) -> [Contender; 2] {
    let mut digest = Sha256::new();
    digest.update(b"luthier review side");
    digest.update(seed.to_le_bytes());
    digest.update(prompt.to_le_bytes());
    let [first, second] = contenders;
    if digest.finalize()[0] & 1 == 0 { [first, second] } else { [second, first] }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: [Contender; 2] = [Contender::Tuned, Contender::Base];

    #[test]
    fn sides_are_reproducible_and_fair() {
        let tuned_left =
            |seed| (0..1000).filter(|prompt| sides(seed, *prompt, PAIR)[0] == Contender::Tuned).count();
        for seed in 0..5 {
            assert!((430..570).contains(&tuned_left(seed)), "{}", tuned_left(seed));
        }
        let left: Vec<_> = (0..8).map(|prompt| sides(42, prompt, PAIR)[0]).collect();
        assert_eq!(left, (0..8).map(|prompt| sides(42, prompt, PAIR)[0]).collect::<Vec<_>>());
        let other: Vec<_> = (0..64).map(|prompt| sides(43, prompt, PAIR)[0]).collect();
        assert_ne!(other, (0..64).map(|prompt| sides(42, prompt, PAIR)[0]).collect::<Vec<_>>());
        assert_eq!(sides(1, 1, PAIR).iter().filter(|side| **side == Contender::Base).count(), 1);
    }
}
