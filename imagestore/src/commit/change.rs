//! Changes of an image's configuration, in the words of a Dockerfile: `ENV A=b`, `CMD ["x"]`.
//!
//! Pure: an instruction and a configuration give another configuration. Instructions that need a file system or a
//! build (RUN, COPY, FROM and so on) are refused by name. The language is the builder's own.

use serde_json::{Map, Value};

use crate::build;

/// An instruction that changes nothing because it is wrong.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("change {instruction:?}: {reason}")]
pub struct ChangeError {
    instruction: String,
    reason: String,
}

/// Applies instructions in order. An ENTRYPOINT takes back the image's CMD, unless a CMD came before it.
pub fn apply_changes(config: &mut Map<String, Value>, instructions: &[String]) -> Result<(), ChangeError> {
    if instructions.is_empty() {
        return Ok(());
    }
    let failed = |(number, reason): (usize, String)| {
        let instruction = instructions.get(number).map(String::as_str).unwrap_or_default();
        ChangeError { instruction: instruction.chars().take(200).collect(), reason }
    };
    let before = build::Config::read(&Value::Object(config.clone()));
    let before = before.map_err(|error| failed((0, format!("the configuration does not parse: {error}"))))?;
    let after = build::change(&before, instructions).map_err(failed)?;
    match serde_json::to_value(after) {
        Ok(Value::Object(after)) => *config = after,
        other => return Err(failed((0, format!("the configuration cannot be written: {other:?}")))),
    }
    Ok(())
}
