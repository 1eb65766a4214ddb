//! Entries of an image's history, in the words that Docker's tools read.

use super::Healthcheck;

/// What ends the entries of steps that made a layer with this builder, where Docker's writes `# buildkit`.
const MARK: &str = " # sampan";

/// RUN, with the arguments that its process saw.
pub(super) fn run(told: &[String], arguments: &[String]) -> String {
    let mut text = "RUN".to_owned();
    if !told.is_empty() {
        text.push_str(&format!(" |{} {}", told.len(), told.join(" ")));
    }
    format!("{text} {}{MARK}", arguments.join(" "))
}

/// COPY and ADD: flags that count, sources, destination.
pub(super) fn transfer(name: &str, words: &[String]) -> String {
    format!("{name} {}{MARK}", words.join(" "))
}

/// A list as Go's `%q` shows it: `["a" "b c"]`.
pub(super) fn quoted(words: &[String]) -> String {
    format!("[{}]", words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" "))
}

/// A list as Go's `%v` shows it: `[a b c]`.
pub(super) fn bare(words: &[String]) -> String {
    format!("[{}]", words.join(" "))
}

fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// HEALTHCHECK, as Go shows the structure.
pub(super) fn healthcheck(check: &Healthcheck) -> String {
    format!(
        "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        bare(&check.test),
        duration(check.interval),
        duration(check.timeout),
        duration(check.start_period),
        duration(check.start_interval),
        check.retries
    )
}

/// A time as Go shows it: `1m30s`, `500ms`, `0s`.
fn duration(nanoseconds: i64) -> String {
    let total = nanoseconds.unsigned_abs();
    let fraction = |value: u64, unit: u64| {
        let (whole, rest) = (value / unit, value % unit);
        if rest == 0 {
            return whole.to_string();
        }
        let digits = unit.ilog10() as usize;
        format!("{whole}.{}", format!("{rest:0digits$}").trim_end_matches('0'))
    };
    match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(total, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(total, 1_000_000)),
        _ => {
            let seconds = total / 1_000_000_000;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let rest = fraction(total % 60_000_000_000, 1_000_000_000);
            match (hours, minutes) {
                (0, 0) => format!("{rest}s"),
                (0, minutes) => format!("{minutes}m{rest}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_read_as_dockers_do() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(run(&[], &words(&["/bin/sh", "-c", "id"])), "RUN /bin/sh -c id # sampan");
        assert_eq!(run(&words(&["A=b"]), &words(&["id"])), "RUN |1 A=b id # sampan");
        assert_eq!(
            quoted(&words(&["nginx", "-g", "daemon \"off\";\n"])),
            r#"["nginx" "-g" "daemon \"off\";\n"]"#
        );
        let check =
            Healthcheck { test: words(&["CMD", "true"]), interval: 90_000_000_000, ..Healthcheck::default() };
        assert_eq!(
            healthcheck(&check),
            "HEALTHCHECK {Test:[CMD true] Interval:1m30s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}"
        );
    }

    #[test]
    fn times_are_shown_as_go_shows_them() {
        for (time, shown) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (500_000_000, "500ms"),
            (1_050_000_000, "1.05s"),
            (60_000_000_000, "1m0s"),
            (3_600_000_000_000, "1h0m0s"),
            (5_400_500_000_000, "1h30m0.5s"),
        ] {
            assert_eq!(duration(time), shown);
        }
    }
}
