//! What the performer of the review pane answers.

use std::path::PathBuf;

use luthier_core::data::Message;
use luthier_core::eval::{SuitePrompt, Verdict, Verdicts};

use super::compare::{Broken, End};
use super::target::Candidate;

/// What the performer answers.
#[derive(Debug)]
pub enum ReviewEvent {
    /// What there is to compare, newest run first.
    Candidates(Result<Vec<Candidate>, String>),
    Suite(Result<Vec<SuitePrompt>, String>),
    Verdicts(Result<Verdicts, String>),
    /// What is being waited for before answers arrive.
    Progress(u64, String),
    /// The prompt was sent: the conversation as sent to the tuned side.
    Began(u64, Vec<Message>),
    /// Pieces of the answers, each with its side: 0 left, 1 right.
    Pieces(u64, Vec<(usize, String)>),
    /// An answer is complete.
    Ended(u64, usize, Box<End>),
    /// There will be no more answers.
    Broken(u64, Broken),
    /// A verdict is on disk, or could not be written.
    Saved(Box<Verdict>, Result<(), String>),
    /// How many pairs were written, and the file.
    Exported(Result<(usize, PathBuf), String>),
    /// The file for the external editor is ready.
    DraftReady(Result<PathBuf, String>),
    /// What the external editor left.
    Draft(Result<String, String>),
    /// A row was added to this file.
    ExampleAdded(Result<PathBuf, String>),
}
