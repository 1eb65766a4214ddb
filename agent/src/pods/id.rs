//! Ids of pods and containers: 64 hexadecimal digits, random, never reused, safe as file names.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// A new random id.
            pub fn random() -> $name {
                $name(hex::encode(rand::random::<[u8; 32]>()).into())
            }

            /// The id that a file of ours is named after; `None` when the name is not an id.
            pub fn from_file_name(name: &str) -> Option<$name> {
                let valid = name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                valid.then(|| $name(name.into()))
            }

            /// The whole id.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first twelve characters, as people are shown.
            pub fn short(&self) -> &str {
                &self.0[..12]
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<$name, String> {
                $name::from_file_name(&text).ok_or_else(|| format!("{text:?} is not an id"))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// The id of a pod sandbox.
    PodId
);
id!(
    /// The id of a container.
    ContainerId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_that_are_no_ids_are_refused() {
        let id = PodId::random();
        assert_eq!(PodId::from_file_name(id.as_str()), Some(id));
        for name in ["", "..", "abc", &"G".repeat(64), &"a/".repeat(32)] {
            assert_eq!(PodId::from_file_name(name), None, "{name}");
        }
    }
}
