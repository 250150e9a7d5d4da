//! Is this enough? What the size of a dataset lets one expect.

use crate::units::{count, counted, percent};

/// Below this a model repeats the rows rather than what they have in common, and as many fit into a prompt.
const FEW_ROWS: usize = 50;
/// From here on published recipes for one task start to work without luck; below, form is learned before
/// content.
const ENOUGH_ROWS: usize = 300;
/// Fewer trained tokens than about five pages of text.
const FEW_TOKENS: u64 = 2500;
/// Below this share of different prompts, rows mostly say again what others say.
const DIFFERENT_PROMPTS: f64 = 0.5;
/// Fewest held-out rows worth having: below, only a difference of over 14 points is more than chance.
const FEW_HELD_OUT: usize = 50;
/// From here on a difference of 5 points can be told, less than most changes of settings make.
const ENOUGH_HELD_OUT: usize = 400;
/// Replies up to this many tokens are labels or a few words.
const SHORT_REPLY: f64 = 4.0;
/// Replies from this many tokens on are never the same twice.
const LONG_REPLY: f64 = 300.0;

/// The sizes that the advice is drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::data) struct Sizes {
    /// Rows trained on.
    pub(in crate::data) rows: usize,
    /// Tokens of those rows that are targets of the loss.
    pub(in crate::data) trained_tokens: u64,
    /// Different prompts among those rows; `None` if they have no prompts.
    pub(in crate::data) prompts: Option<usize>,
    /// Rows held out.
    pub(in crate::data) held_out: usize,
    /// The median length of the replies in tokens; `None` if the rows have no replies.
    pub(in crate::data) reply_length: Option<f64>,
}

/// What to expect of a dataset and what to do about it, one sentence each, the most important first.
pub(in crate::data) fn advice(sizes: &Sizes) -> Vec<String> {
    if sizes.rows == 0 {
        return Vec::new();
    }
    [Some(rows(sizes.rows)), tokens(sizes), prompts(sizes), Some(held_out(sizes.held_out)), replies(sizes)]
        .into_iter()
        .flatten()
        .collect()
}

fn rows(rows: usize) -> String {
    let counted = counted(rows, "training row", "training rows");
    if rows < FEW_ROWS {
        let verb = if rows == 1 { "is" } else { "are" };
        format!(
            "{counted} {verb} too few to teach a behaviour: try a prompt with some of them as examples \
             first, and collect at least {FEW_ROWS}"
        )
    } else if rows < ENOUGH_ROWS {
        format!(
            "{counted} are enough for a format or a tone; for a task with decisions in it, {ENOUGH_ROWS} or \
             more that agree with each other are the usual start"
        )
    } else {
        format!("{counted} are enough to start: look at what the model gets wrong before adding more")
    }
}

fn tokens(sizes: &Sizes) -> Option<String> {
    let tokens = sizes.trained_tokens;
    (tokens < FEW_TOKENS).then(|| {
        let counted =
            counted(usize::try_from(tokens).unwrap_or(usize::MAX), "trained token", "trained tokens");
        format!(
            "{counted} in all, {:.0} in a row: enough for labels, little for a way of writing",
            tokens as f64 / sizes.rows as f64
        )
    })
}

fn prompts(sizes: &Sizes) -> Option<String> {
    let prompts = sizes.prompts?;
    let share = prompts as f64 / sizes.rows as f64;
    (share < DIFFERENT_PROMPTS).then(|| {
        format!(
            "{} different among {} ({}): a new prompt teaches more than another reply to a known one",
            counted(prompts, "prompt is", "prompts are"),
            count(sizes.rows as u64),
            percent(share)
        )
    })
}

fn held_out(rows: usize) -> String {
    if rows == 0 {
        return format!(
            "no rows are held out, so nothing shows whether the model learned or memorised: set data.eval to \
             a file or to a share, for {FEW_HELD_OUT} rows or more"
        );
    }
    let counted = counted(rows, "held-out row", "held-out rows");
    let points = 100.0 / (rows as f64).sqrt();
    let told =
        format!("a difference in accuracy below about {points:.0} points between two settings is chance");
    if rows < FEW_HELD_OUT {
        format!("with {counted}, {told}: hold out at least {FEW_HELD_OUT}")
    } else if rows < ENOUGH_HELD_OUT {
        format!("with {counted}, {told}")
    } else {
        format!("with {counted}, {told}, which is fine enough for most choices")
    }
}

fn replies(sizes: &Sizes) -> Option<String> {
    let length = sizes.reply_length?;
    if length <= SHORT_REPLY {
        Some(format!(
            "half of the replies are {length:.0} tokens long or shorter: a row teaches little more than a label, \
             so the number of rows counts, and that every label is among them"
        ))
    } else if length >= LONG_REPLY {
        Some(format!(
            "half of the replies have {} tokens or more: no reply will equal the expected one, so plan to \
             read replies side by side",
            count(length as u64)
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    const SIZES: Sizes = Sizes {
        rows: 1200,
        trained_tokens: 60_000,
        prompts: Some(1190),
        held_out: 100,
        reply_length: Some(50.0),
    };

    #[test]
    fn a_sound_dataset_gets_the_figures_only() {
        assert_eq!(
            advice(&SIZES),
            [
                "1,200 training rows are enough to start: look at what the model gets wrong before adding \
                 more",
                "with 100 held-out rows, a difference in accuracy below about 10 points between two settings \
                 is chance",
            ]
        );
        assert_eq!(advice(&Sizes { prompts: None, reply_length: None, ..SIZES }).len(), 2);
        assert_eq!(advice(&Sizes { rows: 0, ..SIZES }), [""; 0]);
    }

    #[test]
    fn the_number_of_rows_has_three_answers() {
        let first = |rows| advice(&Sizes { rows, prompts: None, ..SIZES }).remove(0);
        assert!(first(1).starts_with("1 training row is too few"), "{}", first(1));
        assert!(first(49).starts_with("49 training rows are too few"), "{}", first(49));
        assert!(first(50).contains("a format or a tone"), "{}", first(50));
        assert!(first(299).contains("a format or a tone"), "{}", first(299));
        assert!(first(300).contains("enough to start"), "{}", first(300));
    }

    #[test]
    fn thin_data_is_told_with_its_figures() {
        let told = advice(&Sizes {
            rows: 120,
            trained_tokens: 360,
            prompts: Some(12),
            held_out: 0,
            reply_length: Some(3.0),
        });
        assert_eq!(told.len(), 5);
        assert!(told[1].starts_with("360 trained tokens in all, 3 in a row"), "{told:?}");
        assert!(told[2].starts_with("12 prompts are different among 120 (10 %)"), "{told:?}");
        assert!(told[3].starts_with("no rows are held out"), "{told:?}");
        assert!(told[4].starts_with("half of the replies are 3 tokens long or shorter"), "{told:?}");
    }

    #[test]
    fn held_out_rows_say_what_they_can_tell() {
        let told = |held_out| advice(&Sizes { held_out, ..SIZES }).remove(1);
        assert!(told(1).contains("with 1 held-out row,") && told(1).contains("100 points"), "{}", told(1));
        assert!(told(40).contains("about 16 points") && told(40).contains("at least 50"), "{}", told(40));
        assert!(told(2500).contains("about 2 points") && told(2500).contains("enough"), "{}", told(2500));
    }

    #[test]
    fn long_replies_are_read_side_by_side() {
        let told = advice(&Sizes { reply_length: Some(1234.5), ..SIZES });
        assert!(told[2].starts_with("half of the replies have 1,234 tokens or more"), "{told:?}");
    }
}
