//! Signals by name, as images and people write them.

use rustix::process::Signal;

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`; `None` when there is no such signal.
pub(crate) fn parse(text: &str) -> Option<i32> {
    const LAST: i32 = 64;
    if let Ok(number) = text.parse::<i32>() {
        return (1..=LAST).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(real_time) = name.strip_prefix("RT") {
        return real_time_signal(real_time);
    }
    let signal = match name {
        "ABRT" | "IOT" => Signal::ABORT,
        "ALRM" => Signal::ALARM,
        "BUS" => Signal::BUS,
        "CHLD" | "CLD" => Signal::CHILD,
        "CONT" => Signal::CONT,
        "FPE" => Signal::FPE,
        "HUP" => Signal::HUP,
        "ILL" => Signal::ILL,
        "INT" => Signal::INT,
        "IO" | "POLL" => Signal::IO,
        "KILL" => Signal::KILL,
        "PIPE" => Signal::PIPE,
        "PROF" => Signal::PROF,
        "PWR" => Signal::POWER,
        "QUIT" => Signal::QUIT,
        "SEGV" => Signal::SEGV,
        "STKFLT" => Signal::STKFLT,
        "STOP" => Signal::STOP,
        "SYS" | "UNUSED" => Signal::SYS,
        "TERM" => Signal::TERM,
        "TRAP" => Signal::TRAP,
        "TSTP" => Signal::TSTP,
        "TTIN" => Signal::TTIN,
        "TTOU" => Signal::TTOU,
        "URG" => Signal::URG,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "VTALRM" => Signal::VTALARM,
        "WINCH" => Signal::WINCH,
        "XCPU" => Signal::XCPU,
        "XFSZ" => Signal::XFSZ,
        _ => return None,
    };
    Some(signal.as_raw())
}

/// glibc keeps the first two real-time signals for itself, so `SIGRTMIN` is 34 everywhere that matters.
fn real_time_signal(name: &str) -> Option<i32> {
    const MIN: i32 = 34;
    const MAX: i32 = 64;
    let offset = |text: &str, sign: char| match text {
        "" => Some(0),
        other => other.strip_prefix(sign)?.parse::<i32>().ok(),
    };
    let number = match name.strip_prefix("MIN") {
        Some(rest) => MIN + offset(rest, '+')?,
        None => MAX - offset(name.strip_prefix("MAX")?, '-')?,
    };
    (MIN..=MAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_real_time_signals_are_understood() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGQUIT", 3),
            ("SIGRTMIN", 34),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "SIGNOTHING", "SIGRTMIN+99", "-1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
