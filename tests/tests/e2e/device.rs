//! Devices that vendors describe: the Container Device Interface.

use sampan_proto::cri;
use sampan_tests::{Ctr, with_agent};
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
        let mut runtime = cri::runtime_service_client::RuntimeServiceClient::new(agent.channel());
        let config = |device: &str| cri::CreateContainerRequest {
            pod_sandbox_id: pod_id.clone(),
            config: Some(cri::ContainerConfig {
                metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 0 }),
                image: Some(cri::ImageSpec { image: image.clone(), ..Default::default() }),
                command: vec!["sleep".into(), "1000".into()],
                cdi_devices: vec![cri::CdiDevice { name: device.into() }],
                ..Default::default()
            }),
            sandbox_config: Some(cri::PodSandboxConfig::default()),
        };
        // Files are read when somebody asks: the vendor's daemon may come after the agent.
        let status = runtime.create_container(config("vendor.example/sink=full")).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("no CDI file has the device vendor.example/sink=full"), "{status}");
        std::fs::create_dir(agent.base().join("cdi")).unwrap();
        std::fs::write(agent.base().join("cdi/vendor.yaml"), FILE).unwrap();
        let request = config("vendor.example/sink=full");
        let id = runtime.create_container(request).await.unwrap().into_inner().container_id;
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
