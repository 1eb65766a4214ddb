//! The log: one line an entry, as JSON or in the form `time="…" level=… msg="…"`.
//!
//! It goes to the file that the caller names, or else to standard error, as runc's does; callers read the last error from
//! it. With a file, an error goes to standard error as well, in plain words.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::arguments::LogFormat;
use super::error::{Error, Result, text};
use crate::shim::timestamp;

pub(super) struct Log {
    file: Option<File>,
    format: LogFormat,
    debug: bool,
}

impl Log {
    pub(super) fn open(path: Option<&Path>, format: LogFormat, debug: bool) -> Result<Log> {
        let open = |path: &Path| {
            let opened = OpenOptions::new().append(true).create(true).open(path);
            opened.map_err(|source| Error::io(format!("open the log {}", path.display()), source))
        };
        let path = path.filter(|path| !path.as_os_str().is_empty());
        Ok(Log { file: path.map(open).transpose()?, format, debug })
    }

    /// Standard error only.
    pub(super) fn standard() -> Log {
        Log { file: None, format: LogFormat::Text, debug: false }
    }

    pub(super) fn error(&self, error: &dyn std::error::Error) {
        let message = text(error);
        self.entry("error", &message);
        if self.file.is_some() {
            say(&message);
        }
    }

    pub(super) fn warn(&self, message: &str) {
        self.entry("warning", message);
    }

    /// Put together only when somebody wants it.
    pub(super) fn debug(&self, message: std::fmt::Arguments<'_>) {
        if self.debug {
            self.entry("debug", &message.to_string());
        }
    }

    fn entry(&self, level: &str, message: &str) {
        let time = now();
        let line = match self.format {
            LogFormat::Json => {
                serde_json::json!({ "level": level, "msg": message, "time": time }).to_string()
            }
            LogFormat::Text => format!("time=\"{time}\" level={level} msg={message:?}"),
        };
        match &self.file {
            // There is nobody to tell that telling failed.
            Some(file) => drop((&*file).write_all(format!("{line}\n").as_bytes())),
            None => say(&line),
        }
    }
}

fn say(line: &str) {
    // There is nobody to tell that telling failed.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// RFC 3339, in UTC.
pub(super) fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    String::from_utf8_lossy(&timestamp::format(since.as_secs() as i64, since.subsec_nanos())).into_owned()
}
