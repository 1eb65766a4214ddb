//! Compiles the .proto files in Rust: a build needs no protoc on the machine.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "runtime/v1/api.proto",
        "sampan/v1/build.proto",
        "sampan/v1/container.proto",
        "sampan/v1/events.proto",
        "sampan/v1/image.proto",
        "sampan/v1/metrics.proto",
        "sampan/v1/system.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
