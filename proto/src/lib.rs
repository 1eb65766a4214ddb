//! The agent's wire: Kubernetes' CRI v1 and `sampan.v1`, generated from the .proto files beside this crate.
//!
//! Nothing here knows what a message means; the agent converts between these types and its own.

/// Package `runtime.v1`: the Container Runtime Interface.
pub mod cri {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("runtime.v1");
}

/// Package `sampan.v1`: what CRI has no word for.
pub mod sampan {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("sampan.v1");
}

/// The compiled descriptors of every package here, an encoded `FileDescriptorSet`: what gRPC reflection serves.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
