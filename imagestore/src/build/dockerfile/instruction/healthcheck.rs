//! HEALTHCHECK: its options and times.

use super::super::{
    CommandLine, HealthcheckSource,
    flag::{self, Flags},
};
use super::{Mistake, strings, typed::Typed};

const TIMES: [&str; 4] = ["interval", "timeout", "start-period", "start-interval"];
/// Shorter ones are mistakes: a number without its unit.
const SHORTEST: i64 = 1_000_000;

impl Typed<'_> {
    pub(super) fn healthcheck(&self, flags: Vec<flag::Flag>) -> Result<HealthcheckSource, Mistake> {
        let known = [&TIMES[..], &["retries"]].concat();
        let flags = Flags::new(self.line, self.name, flags, &known, &[])?;
        let rest = self.rest();
        let (word, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let command = match (word.to_ascii_uppercase().as_str(), command.trim()) {
            ("NONE", "") => None,
            ("NONE", _) => {
                return Err(self.mistake("HEALTHCHECK NONE takes nothing else", "leave the rest out"));
            }
            ("CMD", "") => {
                return Err(self.mistake("HEALTHCHECK CMD has no command", "write HEALTHCHECK CMD command"));
            }
            ("CMD", text) => {
                let at = self.line.text.trim_end().len() - text.len();
                Some(match strings(self.line, at)? {
                    Some(list) if list.is_empty() => {
                        let help = "write HEALTHCHECK CMD [\"program\"]";
                        return Err(self.mistake("HEALTHCHECK CMD has no command", help));
                    }
                    Some(list) => CommandLine::Exec(list),
                    None => CommandLine::Shell(text.to_owned()),
                })
            }
            _ => {
                let help = "write HEALTHCHECK [--interval=30s] CMD command, or HEALTHCHECK NONE";
                return Err(self.mistake("HEALTHCHECK takes CMD and a command, or NONE", help));
            }
        };
        let time = |name: &str| match flags.text(name)? {
            None => Ok(0),
            Some(text) => match duration(&text) {
                Some(time) if time == 0 || time >= SHORTEST => Ok(time),
                Some(_) => Err(Mistake::new(
                    flags.span(name),
                    format!("{text} is less than 1ms"),
                    "write 30s, 1m30s, 500ms",
                )),
                None => Err(Mistake::new(
                    flags.span(name),
                    format!("{text:?} is no time"),
                    "write 30s, 1m30s, 500ms",
                )),
            },
        };
        let retries = match flags.text("retries")? {
            None => 0,
            Some(text) => match text.parse::<i32>() {
                Ok(number) if number >= 0 => number.into(),
                _ => {
                    let message = format!("{text:?} is no number of retries");
                    return Err(Mistake::new(flags.span("retries"), message, "write --retries=3"));
                }
            },
        };
        Ok(HealthcheckSource {
            command,
            interval: time("interval")?,
            timeout: time("timeout")?,
            start_period: time("start-period")?,
            start_interval: time("start-interval")?,
            retries,
        })
    }
}

/// `1m30s`, `500ms`, `1.5h`, in nanoseconds.
fn duration(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    let (mut total, mut rest) = (0.0, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let after = &rest[digits..];
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let scale = match &after[..unit] {
            "h" => 3600e9,
            "m" => 60e9,
            "s" => 1e9,
            "ms" => 1e6,
            "us" | "µs" | "μs" => 1e3,
            "ns" => 1.0,
            _ => return None,
        };
        total += number * scale;
        rest = &after[unit..];
    }
    (!text.is_empty() && total <= i64::MAX as f64).then_some(total.round() as i64)
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn times_are_those_of_go() {
        for (text, time) in [
            ("1m30s", Some(90_000_000_000)),
            ("500ms", Some(500_000_000)),
            ("1.5h", Some(5_400_000_000_000)),
            ("0", Some(0)),
            ("30", None),
            ("", None),
            ("s", None),
            ("1x", None),
            ("9999999h", None),
        ] {
            assert_eq!(duration(text), time, "{text}");
        }
    }
}
