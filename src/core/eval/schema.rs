//! The JSON Schema against which a reply is checked.

use std::error::Error;
use std::path::Path;

use boon::{CompileError, Compiler, SchemaIndex, Schemas, UrlLoader, ValidationError};
use serde_json::Value;

use super::EvalError;
use crate::files;
use crate::text::clean_line;

/// A schema is written by hand; anything larger is not a schema.
const SCHEMA_LIMIT: u64 = 1 << 20;

/// The URI of the schema among the documents to which it may refer.
const ITSELF: &str = "schema:/project";

/// A compiled schema of draft 4, 6, 7, 2019-09 or 2020-12, chosen by its `$schema`; without it, the newest.
pub(super) struct Schema {
    schemas: Schemas,
    index: SchemaIndex,
}

/// Where and how a value breaks a schema.
pub(super) struct Violation {
    /// A JSON pointer; empty for the whole value.
    pub place: String,
    pub problem: String,
}

/// A schema may refer to itself and to the published drafts, but not to other files or the network.
struct NoOther;

impl UrlLoader for NoOther {
    fn load(&self, _: &str) -> Result<Value, Box<dyn Error>> {
        Err("a schema may refer only to parts of itself; copy what it needs into its \"$defs\"".into())
    }
}

impl Schema {
    pub(super) fn load(path: &Path) -> Result<Self, EvalError> {
        let wrong = |reason: String| EvalError::Schema { path: path.to_owned(), reason };
        let text =
            files::read(path, SCHEMA_LIMIT).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let schema: Value =
            serde_json::from_slice(&text).map_err(|error| wrong(format!("it is not JSON: {error}")))?;
        let mut compiler = Compiler::new();
        compiler.use_loader(Box::new(NoOther));
        let mut schemas = Schemas::new();
        let refused = |error: CompileError| wrong(clean_line(&explain(&error, &schema)).into_owned());
        compiler.add_resource(ITSELF, schema.clone()).map_err(refused)?;
        let index = compiler.compile(ITSELF, &mut schemas).map_err(refused)?;
        Ok(Self { schemas, index })
    }

    /// The first place where `value` breaks the schema.
    pub(super) fn violation(&self, value: &Value) -> Option<Violation> {
        let error = self.schemas.validate(value, self.index).err()?;
        let cause = first_cause(&error);
        Some(Violation { place: cause.instance_location.to_string(), problem: cause.kind.to_string() })
    }
}

impl std::fmt::Debug for Schema {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Schema").finish_non_exhaustive()
    }
}

/// Errors are nested by keyword; the innermost first one says what is wrong.
fn first_cause<'a, 's, 'v>(mut error: &'a ValidationError<'s, 'v>) -> &'a ValidationError<'s, 'v> {
    while let Some(cause) = error.causes.first() {
        error = cause;
    }
    error
}

fn explain(error: &CompileError, schema: &Value) -> String {
    let CompileError::ValidationError { src, .. } = error else { return format!("{error:#}") };
    let cause = first_cause(src);
    let place = cause.instance_location.to_string();
    match schema.pointer(&place) {
        Some(found) if !found.is_object() => format!("{found} at {place}: {}", cause.kind),
        _ => format!("at {place}: {}", cause.kind),
    }
}
