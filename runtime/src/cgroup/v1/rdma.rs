//! The `rdma` controller: handles and objects of each adapter. Both versions have the same files.

use std::collections::{BTreeMap, HashMap};

use oci_spec::runtime::LinuxRdma;

use crate::cgroup::Error;
use crate::cgroup::directory::Directory;

pub(in crate::cgroup) fn apply(
    directory: &Directory,
    adapters: &HashMap<String, LinuxRdma>,
) -> Result<(), Error> {
    let mut lines = Vec::new();
    for (name, limit) in adapters.iter().collect::<BTreeMap<_, _>>() {
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            let reason = format!("{name:?} is not the name of an adapter");
            return Err(Error::Invalid { limit: "rdma", reason });
        }
        let mut line = name.clone();
        for (word, value) in [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())] {
            if let Some(value) = value {
                line.push_str(&format!(" {word}={value}"));
            }
        }
        lines.push(line);
    }
    directory.write_keyed("rdma.max", &lines, "hca_handle=max hca_object=max")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;
    use oci_spec::runtime::LinuxRdmaBuilder;

    #[test]
    fn a_line_has_the_limits_that_are_given() {
        let fake = Fake::with(&[("rdma.max", "")]);
        let limit = LinuxRdmaBuilder::default().hca_handles(2u32).build().unwrap();
        apply(&fake.directory(), &HashMap::from([("mlx5_0".to_owned(), limit)])).unwrap();
        assert_eq!(fake.text("rdma.max"), "mlx5_0 hca_handle=2");
        assert!(apply(&fake.directory(), &HashMap::from([("a b".to_owned(), limit)])).is_err());
    }
}
