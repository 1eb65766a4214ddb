//! The `hugetlb` controller of version 2. A page size that the host lacks is passed over, as kubelet expects.

use oci_spec::runtime::LinuxHugepageLimit;

use crate::cgroup::Error;
use crate::cgroup::directory::Directory;
use crate::cgroup::v1::hugetlb::set;

pub(super) fn apply(directory: &Directory, limits: &[LinuxHugepageLimit]) -> Result<(), Error> {
    for limit in limits {
        for kind in ["max", "rsvd.max"] {
            set(directory, limit, kind)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;
    use oci_spec::runtime::LinuxHugepageLimitBuilder;

    #[test]
    fn both_limits_are_set_where_they_exist() {
        let fake = Fake::with(&[("hugetlb.2MB.max", ""), ("hugetlb.2MB.rsvd.max", "")]);
        let limit = LinuxHugepageLimitBuilder::default().page_size("2MB").limit(2 << 20).build().unwrap();
        apply(&fake.directory(), &[limit]).unwrap();
        assert_eq!(
            (fake.text("hugetlb.2MB.max"), fake.text("hugetlb.2MB.rsvd.max")),
            ("2097152".into(), "2097152".into())
        );
    }
}
