//! Environment variables of a container: files first, then `-e`, so that the command line wins.
//!
//! `NAME` alone takes the value from the client's own environment, and is left out where that has none.

use std::{env, fs, path::PathBuf};

/// All variables as `NAME=VALUE`, in the order they were given.
pub(crate) fn environment(files: &[PathBuf], given: &[String]) -> Result<Vec<String>, String> {
    let mut variables = Vec::new();
    for path in files {
        let name = path.display();
        let text = fs::read_to_string(path).map_err(|error| format!("cannot read {name}: {error}"))?;
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.trim_start();
            if !line.is_empty() && !line.starts_with('#') {
                variables
                    .extend(variable(line).map_err(|error| format!("{name}, line {}: {error}", number + 1))?);
            }
        }
    }
    for text in given {
        variables.extend(variable(text)?);
    }
    Ok(variables)
}

fn variable(text: &str) -> Result<Option<String>, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, _)) => (name, Some(text.to_owned())),
        None => (text, env::var(text).ok().map(|value| format!("{text}={value}"))),
    };
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(format!("{name:?} cannot be the name of a variable; expected NAME=VALUE or NAME"));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_before_the_command_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("env");
        fs::write(&file, "# a comment\n\nA=1\n  B=with spaces and = signs \nPATH\nSAMPAN_TEST_UNSET\n")
            .unwrap();
        let variables = environment(&[file], &["A=2".into(), "EMPTY=".into()]).unwrap();
        let path = format!("PATH={}", env::var("PATH").unwrap());
        assert_eq!(variables, ["A=1", "B=with spaces and = signs ", &path, "A=2", "EMPTY="]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("env");
        fs::write(&file, "A=1\nbad name=2\n").unwrap();
        let error = environment(std::slice::from_ref(&file), &[]).unwrap_err();
        assert!(error.contains("line 2") && error.contains("bad name"), "{error}");
        let missing = folder.path().join("missing");
        assert!(environment(&[missing], &[]).unwrap_err().contains("cannot read"));
    }

    #[test]
    fn a_value_may_be_empty_and_a_name_may_not() {
        assert!(environment(&[], &["=x".into()]).is_err());
        assert!(environment(&[], &[String::new()]).is_err());
    }
}
