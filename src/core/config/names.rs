//! The nearest valid name to a mistyped one.

use strsim::osa_distance;

/// Longer names are not worth comparing: nobody mistypes that much, and the comparison is quadratic.
const LONGEST: usize = 64;

/// The candidate that `name` was most likely meant to be, or `None` when none is near.
///
/// Nearness is the number of characters inserted, deleted, replaced or swapped with their neighbour
/// (optimal string alignment), at most a third of the longer name; case, `-` and `_` do not count.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = fold(name);
    let length = wanted.chars().count();
    if length == 0 || length > LONGEST {
        return None;
    }
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let folded = fold(candidate);
            let folded_length = folded.chars().count();
            let most = length.max(folded_length).div_ceil(3);
            let begins = length >= 3 && folded.starts_with(&wanted);
            let distance = if begins { 1 } else { osa_distance(&wanted, &folded) };
            (distance <= most && distance < folded_length).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn fold(name: &str) -> String {
    name.chars()
        .take(LONGEST + 1)
        .map(|character| if character == '-' { '_' } else { character.to_ascii_lowercase() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 5] = ["learning_rate", "min_learning_rate", "warmup", "seed", "epochs"];

    #[test]
    fn typing_mistakes_find_their_name() {
        assert_eq!(nearest("lerning_rate", KEYS), Some("learning_rate"));
        assert_eq!(nearest("Learning-Rate", KEYS), Some("learning_rate"));
        assert_eq!(nearest("wramup", KEYS), Some("warmup"));
        assert_eq!(nearest("epoch", KEYS), Some("epochs"));
        assert_eq!(nearest("lear", KEYS), Some("learning_rate"));
    }

    #[test]
    fn other_words_find_nothing() {
        assert_eq!(nearest("gradient", KEYS), None);
        assert_eq!(nearest("", KEYS), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest(&"seed".repeat(1000), KEYS), None);
    }

    #[test]
    fn swapped_neighbours_are_one_mistake() {
        assert_eq!(nearest("seed", ["esde", "sede"]), Some("sede"));
    }
}
