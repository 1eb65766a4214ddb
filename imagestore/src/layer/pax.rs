//! The records of a PAX extended header (POSIX.1-2001, "pax Header Block").
//!
//! Only records that change what is laid out are kept. A header that does not parse to its last byte is
//! refused whole: half an extended header would shift the entry it describes.

/// What an extended header says about the entry after it.
#[derive(Clone, Default, Debug)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    /// `SCHILY.xattr.` records: name and value.
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// `GNU.sparse.` records in their order, without the prefix.
    pub(super) sparse: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Seconds since 1970, and nanoseconds that always count forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Time {
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
}

/// Reads `LENGTH KEY=VALUE\n` records until nothing is left.
pub(super) fn parse(mut data: &[u8]) -> Result<Records, &'static str> {
    let mut records = Records::default();
    while !data.is_empty() {
        let (record, rest) = split(data).ok_or("extended header record has a wrong length")?;
        data = rest;
        let equals = record.iter().position(|b| *b == b'=').ok_or("extended header record has no value")?;
        records.add(&record[..equals], &record[equals + 1..])?;
    }
    Ok(records)
}

impl Records {
    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            let name = decode_name(name);
            self.attributes.retain(|(known, _)| *known != name);
            self.attributes.push((name, value.to_vec()));
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
            self.sparse.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        // An empty value takes an earlier one back.
        let given = !value.is_empty();
        let whole = || decimal(value).ok_or("extended header has a malformed number");
        match key {
            b"path" => self.path = given.then(|| value.to_vec()),
            b"linkpath" => self.link = given.then(|| value.to_vec()),
            b"size" => self.size = given.then(whole).transpose()?,
            b"uid" => self.uid = given.then(whole).transpose()?,
            b"gid" => self.gid = given.then(whole).transpose()?,
            b"mtime" => {
                let time = || Time::parse(value).ok_or("extended header has a malformed time");
                self.mtime = given.then(time).transpose()?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes over what a later global header says.
    pub(super) fn update(&mut self, later: Records) {
        self.uid = later.uid.or(self.uid);
        self.gid = later.gid.or(self.gid);
        self.mtime = later.mtime.or(self.mtime);
    }

    /// Fills in what only the global header says.
    pub(super) fn inherit(&mut self, global: &Records) {
        self.uid = self.uid.or(global.uid);
        self.gid = self.gid.or(global.gid);
        self.mtime = self.mtime.or(global.mtime);
    }

    /// Whether these records, standing for a whole archive, would change where entries lie or how long
    /// they are. Readers disagree on that, and no writer of layers does it.
    pub(super) fn moves_entries(&self) -> bool {
        self.path.is_some()
            || self.link.is_some()
            || self.size.is_some()
            || !self.attributes.is_empty()
            || !self.sparse.is_empty()
    }
}

impl Time {
    fn parse(text: &[u8]) -> Option<Time> {
        let (negative, text) = match text.strip_prefix(b"-") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let point = text.iter().position(|b| *b == b'.').unwrap_or(text.len());
        let seconds = i64::try_from(decimal(&text[..point])?).ok()?;
        let fraction = text.get(point + 1..).unwrap_or_default();
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
        let nanoseconds = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
        Some(match (negative, nanoseconds) {
            (false, _) => Time { seconds, nanoseconds },
            (true, 0) => Time { seconds: -seconds, nanoseconds },
            (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
        })
    }
}

/// The first record without its length and line feed, and what follows it.
fn split(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = data.iter().take(20).position(|b| *b == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    Some((record, &data[length..]))
}

/// A plain decimal number: no sign, no space.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// GNU tar writes '=' and '%' within a name as %3D and %25.
fn decode_name(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        (rest, _) = match rest {
            [b'%', b'3', b'D', after @ ..] => (after, decoded.push(b'=')),
            [b'%', b'2', b'5', after @ ..] => (after, decoded.push(b'%')),
            _ => (after, decoded.push(*first)),
        };
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_to_the_last_byte() {
        let records = parse(b"12 path=a\nb\n12 path=abc\n20 mtime=-1.5000000\n").unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"abc"[..]));
        assert_eq!(records.mtime, Some(Time { seconds: -2, nanoseconds: 500_000_000 }));
        for broken in [
            &b"12 path=abc"[..],
            b"11 path=abc\n",
            b"99 path=abc\n",
            b"0 \n",
            b"3 \n",
            b"a path=abc\n",
            b"7 path\n",
        ] {
            assert!(parse(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn empty_value_takes_back_an_earlier_one() {
        let records = parse(b"12 path=abc\n8 path=\n").unwrap();
        assert_eq!(records.path, None);
    }

    #[test]
    fn attribute_names_are_decoded_as_gnu_tar_wrote_them() {
        let records = parse(b"35 SCHILY.xattr.user.a%3Db%25c=1=2\n").unwrap();
        assert_eq!(records.attributes, [(b"user.a=b%c".to_vec(), b"1=2".to_vec())]);
    }
}
