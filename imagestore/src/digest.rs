//! Digests: the names of content.
//!
//! A [`Digest`] is always well formed, so it can be used as a file name. A [`ChainId`] names a stack of
//! layers from the bottom up to one of them (OCI image specification 1.1, "Layer ChainID").
//! Only sha256 is accepted: nothing in use names content by anything else.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(Arc<str>);

/// What is wrong with the text of a digest.
#[derive(Debug, thiserror::Error)]
#[error("digest {text:?} is not \"sha256:\" and 64 lower-case hexadecimal digits")]
pub struct ParseError {
    text: String,
}

const PREFIX: &str = "sha256:";

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest::from_sha256(&Sha256::digest(bytes).into())
    }

    /// The digest that a finished SHA-256 computation gave.
    pub fn from_sha256(hash: &[u8; 32]) -> Digest {
        Digest(format!("{PREFIX}{}", hex::encode(hash)).into())
    }

    /// The whole digest, with its algorithm.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hexadecimal digits alone: a safe file name.
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }
}

impl FromStr for Digest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Digest, ParseError> {
        let valid = text.strip_prefix(PREFIX).is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        if valid {
            Ok(Digest(text.into()))
        } else {
            // The text may come from a stranger's manifest: never repeat more of it than a digest has.
            Err(ParseError { text: text.chars().take(80).collect() })
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Digest, ParseError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a layer together with all that lies under it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
pub struct ChainId(Digest);

impl ChainId {
    /// The chain of a lowest layer: its own diff id.
    pub fn base(diff_id: &Digest) -> ChainId {
        ChainId(diff_id.clone())
    }

    /// The chain of `diff_id` on top of this one.
    pub fn child(&self, diff_id: &Digest) -> ChainId {
        ChainId(Digest::of(format!("{} {diff_id}", self.0).as_bytes()))
    }

    /// The digest that stands for the chain.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl From<Digest> for ChainId {
    fn from(digest: Digest) -> ChainId {
        ChainId(digest)
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digest_of_nothing_is_the_published_one() {
        assert_eq!(Digest::of(b"").as_str(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
    }

    #[test]
    fn parse_rejects_what_could_be_a_path() {
        for text in ["", "sha256:", "sha256:../x", "sha512:00", &EMPTY.to_uppercase(), &EMPTY[..70]] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn chain_of_two_layers_hashes_both_names() {
        let diff_id = Digest::of(b"");
        let chain = ChainId::base(&diff_id).child(&diff_id);
        assert_eq!(chain.digest(), &Digest::of(format!("{EMPTY} {EMPTY}").as_bytes()));
    }
}
