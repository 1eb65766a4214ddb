//! The `hugetlb` controller of version 1. A page size that the host lacks is passed over, as kubelet expects.

use oci_spec::runtime::LinuxHugepageLimit;

use crate::cgroup::Error;
use crate::cgroup::directory::Directory;

pub(super) fn apply(directory: &Directory, limits: &[LinuxHugepageLimit]) -> Result<(), Error> {
    for limit in limits {
        for kind in ["limit_in_bytes", "rsvd.limit_in_bytes"] {
            set(directory, limit, kind)?;
        }
    }
    Ok(())
}

pub(in crate::cgroup) fn set(
    directory: &Directory,
    limit: &LinuxHugepageLimit,
    kind: &str,
) -> Result<(), Error> {
    let size = limit.page_size();
    if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        let reason = format!("page size {size:?} is none");
        return Err(Error::Invalid { limit: "hugepageLimits", reason });
    }
    let name = format!("hugetlb.{size}.{kind}");
    match directory.has(&name) {
        true => directory.write(&name, &limit.limit().to_string()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;
    use oci_spec::runtime::LinuxHugepageLimitBuilder;

    fn limit(size: &str) -> LinuxHugepageLimit {
        LinuxHugepageLimitBuilder::default().page_size(size).limit(4 << 20).build().unwrap()
    }

    #[test]
    fn known_sizes_are_limited_and_unknown_passed_over() {
        let fake = Fake::with(&[("hugetlb.2MB.limit_in_bytes", "")]);
        apply(&fake.directory(), &[limit("2MB"), limit("1GB")]).unwrap();
        assert_eq!(fake.text("hugetlb.2MB.limit_in_bytes"), "4194304");
    }

    #[test]
    fn sizes_that_are_paths_are_refused() {
        assert!(apply(&Fake::with(&[]).directory(), &[limit("../x")]).unwrap_err().is_invalid_argument());
    }
}
