//! Amounts: `64m` of memory, `0.5` of a core.

/// Bytes; the suffixes b, k, m, g and t count in 1024, with or without a further `b` or `ib`.
pub(crate) fn memory(text: &str) -> Result<i64, String> {
    const EXPECTED: &str = "expected a number with b, k, m, g or t behind it, such as 64m or 1.5g";
    let lower = text.trim().to_ascii_lowercase();
    let digits =
        lower.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(lower.len());
    let (number, suffix) = lower.split_at(digits);
    let shift = match suffix.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(EXPECTED.to_owned()),
    };
    let bytes = number.parse::<f64>().map_err(|_| EXPECTED.to_owned())? * (1_u64 << shift) as f64;
    if bytes < 1.0 || bytes >= i64::MAX as f64 {
        return Err(format!("{text} is not an amount of memory; {EXPECTED}"));
    }
    Ok(bytes as i64)
}

/// An amount of memory, or -1.
pub(crate) fn swap(text: &str) -> Result<i64, String> {
    if text == "-1" { Ok(-1) } else { memory(text) }
}

/// `size=10g`, the only option there is.
pub(crate) fn storage(text: &str) -> Result<i64, String> {
    let size = text.strip_prefix("size=").ok_or("expected size=AMOUNT, such as size=10g")?;
    memory(size)
}

/// Thousandths of a core. Read digit by digit, so that 0.1 is 100 and not 99.
pub(crate) fn cores(text: &str) -> Result<i64, String> {
    const EXPECTED: &str = "expected a number of cores above 0 with at most three decimals, such as 0.5 or 2";
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let fraction = fraction.trim_end_matches('0');
    if !digits(whole) || !digits(fraction) || fraction.len() > 3 || text.len() > 12 {
        return Err(EXPECTED.to_owned());
    }
    let millis = format!("{whole}{fraction:0<3}").parse::<i64>().map_err(|_| EXPECTED.to_owned())?;
    if millis == 0 { Err(EXPECTED.to_owned()) } else { Ok(millis) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_has_a_size() {
        assert_eq!(storage("size=1k"), Ok(1024));
        for bad in ["10g", "size", "size=", "size=x", "inodes=5"] {
            assert!(storage(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn swap_may_have_no_limit() {
        assert_eq!((swap("-1"), swap("1k")), (Ok(-1), Ok(1024)));
        assert!(swap("-2").is_err());
    }

    #[test]
    fn memory_counts_in_1024() {
        for (text, bytes) in [
            ("1048576", 1 << 20),
            ("64m", 64 << 20),
            ("64M", 64 << 20),
            ("64MiB", 64 << 20),
            ("512kb", 512 << 10),
            ("1.5g", 3 << 29),
            ("7b", 7),
            ("2t", 2 << 40),
        ] {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn memory_without_a_number_or_with_a_strange_unit_is_refused() {
        for text in ["", "m", "64x", "-1m", "1..2g", "0", "0.1b", "99999999999t", "nan", "1e3"] {
            assert!(memory(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn cores_are_exact_to_a_thousandth() {
        for (text, millis) in [
            ("0.5", 500),
            ("2", 2000),
            ("1.25", 1250),
            (".1", 100),
            ("0.001", 1),
            ("3.", 3000),
            ("1.2500", 1250),
        ] {
            assert_eq!(cores(text), Ok(millis), "{text}");
        }
    }

    #[test]
    fn cores_that_are_none_are_refused() {
        for text in ["", "0", "0.0000", "-1", "0.0001", "half", "1,5", "9999999999999"] {
            assert!(cores(text).is_err(), "{text:?}");
        }
    }
}
