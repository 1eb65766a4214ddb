//! Devices that vendors describe: the Container Device Interface.

use sampan_proto::cri;
use sampan_tests::{Ctr, container, with_agent};
use tonic::Code;

use super::busybox;

/// What a vendor's package would bring: the host's /dev/full under another name.
const FILE: &str = r"
cdiVersion: 0.6.0
kind: vendor.example/sink
devices:
  - name: full
    containerEdits:
      env: [SINK=full]
      deviceNodes:
        - { path: /dev/sink, hostPath: /dev/full, permissions: rw }
      mounts:
        - { hostPath: /etc/hostname, containerPath: /usr/share/vendor/name, options: [ro] }
";

#[tokio::test(flavor = "multi_thread")]
async fn a_device_comes_with_all_that_its_vendor_says() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("device"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let create = async || {
            let device = cri::CdiDevice { name: "vendor.example/sink=full".into() };
            let config = container("c", &image, &["sleep", "1000"]);
            agent.create(&pod_id, cri::ContainerConfig { cdi_devices: vec![device], ..config }).await
        };
        // Files are read when somebody asks: the vendor's daemon may come after the agent.
        let status = create().await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("no CDI file has the device vendor.example/sink=full"), "{status}");
        std::fs::create_dir(agent.base().join("cdi")).unwrap();
        std::fs::write(agent.base().join("cdi/vendor.yaml"), FILE).unwrap();
        let id = create().await.unwrap();
        cri.start(&id).await.unwrap();
        let script = "echo $SINK; stat -c %t:%T /dev/sink; echo x 2>/dev/null >/dev/sink || echo no space";
        assert_eq!(cri.sh(&id, script).await, "full\n1:7\nno space");
        assert_eq!(cri.sh(&id, "test -s /usr/share/vendor/name && echo there").await, "there");

        let annotated =
            Ctr::sleeper("annotated", &image, &pod).annotation("cdi.k8s.io/x", "vendor.example/sink=full");
        let id = cri.run(&pod_id, &annotated, &pod).await.unwrap();
        assert_eq!(cri.sh(&id, "stat -c %t:%T /dev/sink").await, "1:7");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
