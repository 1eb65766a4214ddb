//! One 512-byte tar header, as POSIX.1-1988 (ustar) and GNU tar lay it out.
//!
//! Nothing here allocates or looks beyond the block. Fields that two readers would understand differently
//! are refused: a difference between readers is how one archive becomes two.

use super::source::BLOCK;

/// A header whose checksum is right.
#[derive(Clone, Copy)]
pub(super) struct Header<'b>(&'b [u8; BLOCK]);

impl<'b> Header<'b> {
    /// None when the checksum does not fit the block.
    pub(super) fn parse(block: &'b [u8; BLOCK]) -> Option<Header<'b>> {
        let stored = number(&block[148..156])?;
        // The field itself counts as spaces.
        let (before, after) = (&block[..148], &block[156..]);
        let sum = |part: &[u8]| part.iter().map(|b| u32::from(*b)).sum::<u32>();
        let unsigned = 8 * u32::from(b' ') + sum(before) + sum(after);
        // Some old writers summed signed characters; every reader takes either.
        let negative = |part: &[u8]| part.iter().map(|b| u32::from(b >> 7)).sum::<u32>();
        let signed = || i128::from(unsigned) - 256 * i128::from(negative(before) + negative(after));
        (stored == i128::from(unsigned) || stored == signed()).then_some(Header(block))
    }

    /// The whole block, for what is laid out differently by type.
    pub(super) fn bytes(self) -> &'b [u8; BLOCK] {
        self.0
    }

    pub(super) fn kind(self) -> u8 {
        self.0[156]
    }

    pub(super) fn name(self) -> &'b [u8] {
        text(&self.0[..100])
    }

    /// What stands before the name, in POSIX archives only: GNU keeps other things in its place.
    pub(super) fn prefix(self) -> &'b [u8] {
        if &self.0[257..263] == b"ustar\0" { text(&self.0[345..500]) } else { b"" }
    }

    pub(super) fn link(self) -> &'b [u8] {
        text(&self.0[157..257])
    }

    pub(super) fn mode(self) -> Option<i128> {
        number(&self.0[100..108])
    }

    pub(super) fn uid(self) -> Option<i128> {
        number(&self.0[108..116])
    }

    pub(super) fn gid(self) -> Option<i128> {
        number(&self.0[116..124])
    }

    pub(super) fn size(self) -> Option<i128> {
        number(&self.0[124..136])
    }

    pub(super) fn mtime(self) -> Option<i128> {
        number(&self.0[136..148])
    }

    pub(super) fn device(self) -> Option<(i128, i128)> {
        Some((number(&self.0[329..337])?, number(&self.0[337..345])?))
    }
}

/// The bytes before the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A number in octal, or in GNU's base 256 where the top bit of the first byte is set.
pub(super) fn number(field: &[u8]) -> Option<i128> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(field),
        _ => octal(field),
    }
}

fn base_256(field: &[u8]) -> Option<i128> {
    // Bit 6 of the first byte is the sign; 12 bytes at most, so nothing overflows.
    let negative = field[0] & 0x40 != 0;
    let first = if negative { i128::from(field[0].cast_signed()) } else { i128::from(field[0] & 0x7f) };
    let value = field[1..].iter().fold(first, |value, byte| (value << 8) | i128::from(*byte));
    i64::try_from(value).ok().map(i128::from)
}

fn octal(field: &[u8]) -> Option<i128> {
    let start = field.iter().position(|b| *b != b' ').unwrap_or(field.len());
    let rest = &field[start..];
    let digits = rest.iter().position(|b| !(b'0'..=b'7').contains(b)).unwrap_or(rest.len());
    let (digits, rest) = rest.split_at(digits);
    let clean = match rest.first() {
        None => true,
        // GNU reads nothing past a NUL, Go skips leading ones: refuse where that would matter.
        Some(0) => !digits.is_empty() || rest.iter().all(|b| matches!(b, 0 | b' ')),
        Some(b' ') => rest.iter().all(|b| matches!(b, 0 | b' ')),
        Some(_) => false,
    };
    clean.then(|| digits.iter().fold(0, |value, digit| value * 8 + i128::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_signed_characters_are_taken_too() {
        let mut block = [0_u8; BLOCK];
        let name = "a name with ä".as_bytes();
        block[..name.len()].copy_from_slice(name);
        let unsigned = name.iter().map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
        for (sum, fits) in [(unsigned, true), (unsigned - 2 * 256, true), (unsigned - 256, false), (0, false)]
        {
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            assert_eq!(Header::parse(&block).is_some(), fits, "{sum}");
        }
    }

    #[test]
    fn numbers_are_read_as_other_readers_do() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"00000644", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"7\0garbag", Some(7)),
            (b"\0\0\0\0\0\0\x37\0", None),
            (b"12 3   \0", None),
            (b"-1\0\0\0\0\0\0", None),
            (b"0x10\0\0\0\0", None),
            (b"9\0\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\0\x01\0\0", Some(0x10000)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
