//! Signals of STOPSIGNAL: names of Linux, with or without SIG, and numbers.

const NAMES: [&str; 34] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE",
    "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU",
    "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// Whether the text names a signal.
pub(super) fn is_signal(text: &str) -> bool {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // 30 real-time signals, counted from either end.
    let real_time = |prefix: &str, sign: char| {
        name.strip_prefix(prefix).is_some_and(|rest| {
            rest.is_empty()
                || rest.strip_prefix(sign).is_some_and(|number| {
                    number.bytes().all(|byte| byte.is_ascii_digit())
                        && number.parse::<u8>().is_ok_and(|number| number <= 30)
                })
        })
    };
    NAMES.contains(&name) || real_time("RTMIN", '+') || real_time("RTMAX", '-')
}

#[cfg(test)]
mod tests {
    use super::is_signal;

    #[test]
    fn names_and_numbers_are_known() {
        for text in ["SIGTERM", "term", "9", "64", "SIGRTMIN+3", "RTMAX-2", "SIGWINCH", "RTMIN"] {
            assert!(is_signal(text), "{text}");
        }
        for text in ["", "0", "65", "SIGNOTHING", "SIGRTMIN+99", "RTMAX+1", "TERM;rm", "-9"] {
            assert!(!is_signal(text), "{text}");
        }
    }
}
