//! Compiles cri.proto to the descriptors that the client reads its calls from. It needs no protoc.

use std::path::PathBuf;

use prost::Message;

fn main() -> anyhow::Result<()> {
    println!("cargo::rerun-if-changed=cri.proto");
    let descriptors = protox::compile(["cri.proto"], ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("cri.descriptors"), descriptors.encode_to_vec())?;
    Ok(())
}
