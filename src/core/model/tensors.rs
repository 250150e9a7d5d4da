//! Matches the tensors that an architecture needs with those in the files.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use super::architecture::{Architecture, Parameter};
use super::error::{ModelError, TensorProblems};
use super::roles::{Part, Role};
use super::storage::Storage;
use super::{Arrangement, TensorEntry};
use crate::text::Shown;

/// A tensor in a file.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) shape: Vec<usize>,
    /// Or the name of an encoding that Luthier does not read.
    pub(super) storage: Result<Storage, &'static str>,
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Finds each parameter's tensor under the name given by `in_file`. All missing, unexpected and wrongly
/// shaped tensors are reported together. Unexpected tensors whose name ends with one of `harmless`, and a
/// stored copy of a tied head, are not reported.
pub(super) fn assign(
    root: &Path,
    files: &[PathBuf],
    architecture: &Architecture,
    mut found: IndexMap<String, Found>,
    harmless: &[&str],
    in_file: impl Fn(&Parameter) -> String,
) -> Result<IndexMap<String, TensorEntry>, ModelError> {
    let mut problems = TensorProblems::default();
    let mut tensors = IndexMap::new();
    let mut unreadable = None;
    for parameter in architecture.parameters() {
        let name = in_file(&parameter);
        let Some(Found { shape, storage, file, offset, bytes }) = found.swap_remove(&name) else {
            problems.missing.push(name);
            continue;
        };
        let linear = parameter.role.is_linear() && parameter.part == Part::Weight;
        let arrangement = if architecture.transposed && linear && parameter.role != Role::Head {
            Arrangement::Transposed
        } else {
            Arrangement::Plain
        };
        let mut needed = parameter.shape.clone();
        if arrangement == Arrangement::Transposed {
            needed.reverse();
        }
        if shape != needed {
            problems.shapes.push((name, needed, shape));
            continue;
        }
        match storage {
            Ok(storage) => {
                let shape = parameter.shape;
                let entry = TensorEntry { shape, storage, file, offset, bytes, arrangement };
                tensors.insert(parameter.name, entry);
            }
            Err(found) => unreadable = unreadable.or(Some((name, file, found))),
        }
    }
    let tied_head = architecture
        .module(Role::Head, 0)
        .filter(|_| architecture.tied_head)
        .map(|head| format!("{head}.weight"));
    problems.unexpected = found
        .into_keys()
        .filter(|name| Some(name) != tied_head.as_ref() && !harmless.iter().any(|end| name.ends_with(end)))
        .collect();
    problems.unexpected.sort_unstable();
    if !problems.is_empty() {
        return Err(ModelError::Tensors { root: root.into(), problems });
    }
    if let Some((tensor, file, found)) = unreadable {
        let file = files.get(file).map_or_else(|| root.into(), Shown::from);
        return Err(ModelError::TensorType { file, tensor: Shown::new(&tensor), found: Shown::new(found) });
    }
    Ok(tensors)
}
