//! A container whose processes stand still, for as long as somebody looks at what they have made.

use sampan_runtime::cgroup::Cgroup;

use crate::error::{Error, Result};

/// Goes on when it is dropped.
#[derive(Debug)]
pub(crate) struct Frozen(Cgroup);

impl Frozen {
    /// Returns when every process stands still.
    pub(crate) fn new(path: &str) -> Result<Frozen> {
        let failed = |source| Error::Cgroup { path: path.to_owned(), source };
        let frozen = Frozen(Cgroup::new(path).map_err(failed)?);
        frozen.0.freeze(true).map_err(failed)?;
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // A container that ended meanwhile, killed that is, has nothing to go on.
        if let Err(error) = self.0.freeze(false) {
            tracing::debug!(%error, cgroup = self.0.path(), "cgroup not thawed");
        }
    }
}

/// Has a container go on that an agent which is gone left standing still.
pub(crate) fn thaw(path: &str) {
    let thawed = Cgroup::new(path).and_then(|cgroup| match cgroup.is_frozen()? {
        true => cgroup.freeze(false),
        false => Ok(()),
    });
    if let Err(error) = thawed {
        tracing::debug!(%error, cgroup = path, "cgroup not thawed");
    }
}
