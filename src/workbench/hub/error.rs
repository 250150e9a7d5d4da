//! Why a model cannot be fetched, in words for the user. No message quotes a server.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use luthier_core::model::ModelError;
use luthier_core::text::clean_line;
use luthier_core::units;

/// Files that a message names.
const NAMED_FILES: usize = 8;

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The caller cancelled it.
    #[error("cancelled; what was fetched is kept, and the same command continues from there")]
    Cancelled,
    /// A variable or a file that says where the hub is or who asks.
    #[error("{} {problem}", shown(variable))]
    Environment {
        /// The variable, or the file.
        variable: String,
        /// What is wrong with it, and the remedy.
        problem: &'static str,
    },
    /// The hub cannot be talked to.
    #[error(
        "cannot reach the hub at {endpoint}: {}; check the network, HTTPS_PROXY and HF_ENDPOINT. A model that is in \
         the download cache needs no network",
        shown(reason)
    )]
    Unreachable {
        endpoint: String,
        /// What the system said.
        reason: String,
    },
    /// There is no such model, or it is not shown to this user.
    #[error("the hub at {endpoint} has no model {model}, or does not show it: check its name; {}", sign_in(*signed_in))]
    NoModel {
        endpoint: String,
        /// As it was asked for.
        model: String,
        /// Whether a token was sent.
        signed_in: bool,
    },
    /// The repository lacks the branch, tag or commit.
    #[error("{repository} has no revision `{revision}`; {endpoint}/{repository}/tree/main lists what it has")]
    NoRevision {
        endpoint: String,
        repository: String,
        /// As it was asked for.
        revision: String,
    },
    /// The repository lacks the file.
    #[error("{repository} has no file {file}{}", listed("; its GGUF files are", found))]
    NoFile {
        repository: String,
        /// As it was asked for.
        file: String,
        /// The GGUF files it has.
        found: Vec<String>,
    },
    /// The model's conditions have to be accepted first.
    #[error(
        "{repository} is gated: accept its conditions at {endpoint}/{repository}; {}",
        if *signed_in {
            "your token must belong to the account that did, with the right to read gated repositories"
        } else {
            "then set HF_TOKEN to a token of your account, or log in with `hf auth login`"
        }
    )]
    Gated {
        endpoint: String,
        repository: String,
        /// Whether a token was sent.
        signed_in: bool,
    },
    /// The hub does not know the token.
    #[error(
        "the hub at {endpoint} does not accept your token; make a new one at {endpoint}/settings/tokens and set HF_TOKEN"
    )]
    TokenRefused { endpoint: String },
    /// The user may not read the model.
    #[error("the hub at {endpoint} denies access to {repository}; {}", sign_in(*signed_in))]
    Denied {
        endpoint: String,
        repository: String,
        /// Whether a token was sent.
        signed_in: bool,
    },
    #[error(
        "the hub at {endpoint} refuses more requests for now; wait some minutes, then run the same command again"
    )]
    Busy { endpoint: String },
    /// The hub is out of order.
    #[error("the hub at {endpoint} is out of order (status {status}); run the same command again later")]
    OutOfOrder { endpoint: String, status: u16 },
    /// What answers is no hub.
    #[error("{endpoint} does not answer as a hub does: {problem}; check HF_ENDPOINT")]
    NoHub {
        endpoint: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// A transfer broke off, and could not be taken up again.
    #[error(
        "the transfer of {file} was interrupted at {} of {}: {}; run the same command again, it continues from there",
        units::bytes(*held), units::bytes(*bytes), shown(reason)
    )]
    Broken {
        file: String,
        /// Bytes that are there.
        held: u64,
        bytes: u64,
        reason: String,
    },
    /// A file is not what the hub says it is.
    #[error(
        "{file} arrived damaged (its SHA-256 is not what the hub names) and was deleted; run the same command again"
    )]
    Damaged { file: String },
    /// The repository has its weights only as pickle.
    #[error(
        "{repository} has its weights only as pickle ({file}), which can run code when it is opened; Luthier takes only \
         safetensors and GGUF. Look for a branch or another repository with safetensors, or convert it where you trust \
         it, and give the folder: python3 -c \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; \
         M.from_pretrained('{repository}').save_pretrained('model'); T.from_pretrained('{repository}').save_pretrained('model')\""
    )]
    Pickle {
        repository: String,
        /// One of them.
        file: String,
    },
    /// The repository holds something other than a base model.
    #[error("{repository} is not a base model that Luthier can use: {found}")]
    NotAModel {
        repository: String,
        /// What was found instead, and what to do.
        found: String,
    },
    /// The repository holds GGUF files alone.
    #[error("{repository} holds GGUF files; name one, as in hf:{repository}:{}{}", found[0], listed(". It has", found))]
    GgufAlone {
        repository: String,
        /// The files; at least one.
        found: Vec<String>,
    },
    /// The disk cannot hold it.
    #[error(
        "the disk is too full: {} are free at {}, {} are needed; free some space, or set HF_HOME to a folder on a larger disk",
        units::bytes(*free), shown(&cache.display().to_string()), units::bytes(*needed)
    )]
    DiskFull {
        cache: PathBuf,
        /// Bytes to fetch.
        needed: u64,
        /// Bytes there are.
        free: u64,
    },
    /// The cache cannot be read or written.
    #[error("cannot {action} {}: {source}{}", shown(&path.display().to_string()), remedy(source))]
    File {
        action: &'static str,
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// What was fetched cannot be understood, or found again.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl HubError {
    /// Makes an error of what the system says about a file.
    pub(super) fn file(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { action, path: path.clone(), source }
    }

    /// Whether what was asked for is at fault, and not the work.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Environment { .. }
            | Self::NoModel { .. }
            | Self::NoRevision { .. }
            | Self::NoFile { .. }
            | Self::Pickle { .. }
            | Self::NotAModel { .. }
            | Self::GgufAlone { .. } => true,
            Self::Unreachable { .. }
            | Self::Gated { .. }
            | Self::TokenRefused { .. }
            | Self::Denied { .. }
            | Self::Busy { .. }
            | Self::OutOfOrder { .. }
            | Self::NoHub { .. }
            | Self::Broken { .. }
            | Self::Damaged { .. }
            | Self::DiskFull { .. }
            | Self::File { .. }
            | Self::Cancelled
            | Self::Model(_) => false,
        }
    }
}

fn shown(text: &str) -> impl fmt::Display + '_ {
    clean_line(text)
}

fn sign_in(signed_in: bool) -> &'static str {
    if signed_in {
        "if it is private, your token must have the right to read it"
    } else {
        "if it is private or gated, set HF_TOKEN, or log in with `hf auth login`"
    }
}

fn listed(lead: &str, files: &[String]) -> String {
    if files.is_empty() {
        return String::new();
    }
    let named = files.iter().take(NAMED_FILES).map(String::as_str).collect::<Vec<_>>().join(", ");
    match files.len().saturating_sub(NAMED_FILES) {
        0 => format!("{lead} {named}"),
        more => format!("{lead} {named} and {more} more"),
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space and run the same command again, it continues where it was, or set HF_HOME to a folder on a \
             larger disk"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; set HF_HOME to a folder that you may write to"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => "; a file is in the way",
        _ => "",
    }
}
