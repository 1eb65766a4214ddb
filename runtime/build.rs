//! Links `sampan-runtime` at a fixed address, and lets it begin before the C library does (`sys/entry.rs`).
//!
//! A position-independent program writes its relocations at every start, which makes about 280 KiB of it private to
//! each process: too much for a monitor that every pod has. At a fixed address those pages stay in the page cache
//! and are shared by all. Stack, heap and mappings are randomised as before.
//!
//! Each segment begins a page. Where the linker saves a few hundred bytes of the file by having one begin in the middle,
//! what a monitor writes to is spread over a page or two more.

fn main() {
    let target = |name: &str| std::env::var(name).unwrap_or_default();
    let is_static = target("CARGO_CFG_TARGET_FEATURE").split(',').any(|feature| feature == "crt-static");
    if target("CARGO_CFG_TARGET_ENV") == "gnu" && is_static {
        // The later option wins over the -static-pie that rustc gives, and makes -static its own business again.
        println!("cargo::rustc-link-arg-bins=-no-pie");
        println!("cargo::rustc-link-arg-bins=-static");
        println!("cargo::rustc-link-arg-bins=-Wl,-z,separate-loadable-segments");
        if target("CARGO_CFG_TARGET_ARCH") == "x86_64" {
            println!("cargo::rustc-link-arg-bins=-Wl,--entry=sampan_entry");
        }
    }
    println!("cargo::rerun-if-changed=build.rs");
}
