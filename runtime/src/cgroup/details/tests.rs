//! Readings of fixtures in the kernel's formats.

use super::*;
use crate::cgroup::fake::Fake;
use crate::cgroup::hierarchy::{Hierarchies, Hierarchy};

#[test]
fn version_2_is_read_whole() {
    let fake = Fake::with(&[
        ("cpu.stat", "usage_usec 9\nnr_bursts 2\nburst_usec 5\n"),
        ("memory.stat", "anon 300\nkernel 77\n"),
        ("memory.events", "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n"),
        ("memory.current", "1000\n"),
        ("memory.max", "max\n"),
        ("memory.swap.current", "5\n"),
        ("memory.swap.max", "4096\n"),
        ("memory.swap.events", "high 0\nmax 0\nfail 3\n"),
        ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=4 dios=1\n8:16 \n"),
        ("hugetlb.2MB.current", "2097152\n"),
        ("hugetlb.2MB.max", "4194304\n"),
        ("hugetlb.2MB.events", "max 6\n"),
        ("hugetlb.2MB.rsvd.current", "0\n"),
        ("rdma.current", "mlx5_0 hca_handle=2 hca_object=20\n"),
        ("rdma.max", "mlx5_0 hca_handle=3 hca_object=max\n"),
        ("misc.current", "sev 1\n"),
        ("misc.max", "sev 10\nsev_es max\n"),
        ("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=4\n"),
    ]);
    let details = v2(&fake.directory()).unwrap();
    assert_eq!(details.cpu["nr_bursts"], 2);
    assert_eq!(details.kernel.usage, 77);
    assert_eq!(details.memory_usage, Counter { usage: 1000, peak: None, limit: None, failures: 9 });
    assert_eq!(details.swap, Counter { usage: 5, peak: None, limit: Some(4096), failures: 3 });
    assert_eq!((details.io[0].bytes["Discard"], details.io[0].operations["Write"]), (4, 2));
    let huge = Counter { usage: 2 << 20, peak: None, limit: Some(4 << 20), failures: 6 };
    assert_eq!(details.hugetlb, BTreeMap::from([("2MB".to_owned(), huge)]));
    assert_eq!((details.rdma["mlx5_0"].objects, details.rdma["mlx5_0"].handles_limit), (20, Some(3)));
    assert_eq!(details.rdma["mlx5_0"].objects_limit, None);
    assert_eq!(details.misc["sev"], Counter { usage: 1, limit: Some(10), ..Counter::default() });
    assert_eq!(details.pressure.unwrap().memory.unwrap().some.total_us, 4);
}

#[test]
fn version_1_is_read_whole() {
    let fake = Fake::with(&[
        ("cpuacct.usage_percpu", "11 22 \n"),
        ("cpu.stat", "nr_periods 12\n"),
        ("memory.stat", "total_rss 300\n"),
        ("memory.usage_in_bytes", "1000\n"),
        ("memory.max_usage_in_bytes", "2000\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.failcnt", "4\n"),
        ("memory.kmem.usage_in_bytes", "50\n"),
        ("blkio.throttle.io_service_bytes", "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n"),
        ("blkio.throttle.io_serviced", "8:0 Read 1\nTotal 1\n"),
        ("hugetlb.1GB.usage_in_bytes", "0\n"),
        ("hugetlb.1GB.limit_in_bytes", "1073741824\n"),
    ]);
    let controllers = ["cpu", "cpuacct", "memory", "blkio", "hugetlb"].map(str::to_owned).to_vec();
    let hierarchies =
        Hierarchies { v1: vec![Hierarchy { root: fake.path().to_owned(), controllers }], unified: None };
    let details = v1(&Place { hierarchies: &hierarchies, path: "" }).unwrap();
    assert_eq!(details.per_cpu_ns, [11, 22]);
    assert_eq!(details.memory_usage, Counter { usage: 1000, peak: Some(2000), limit: None, failures: 4 });
    assert_eq!(details.kernel.usage, 50);
    assert_eq!(details.io.len(), 1);
    assert_eq!((details.io[0].bytes["Total"], details.io[0].operations["Read"]), (30, 1));
    assert_eq!(details.hugetlb["1GB"].limit, Some(1 << 30));
    assert_eq!(details.pressure, None);
}
