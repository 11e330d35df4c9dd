//! With the feature `tch`: compiles the ops of libtorch that tch has no binding for, and lets this
//! package's tests find libtorch where the build found it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The libtorch at hand has the ops of NVIDIA GPUs.
    println!("cargo::rustc-check-cfg=cfg(libtorch_has_cuda)");
    #[cfg(feature = "tch")]
    libtorch();
}

#[cfg(feature = "tch")]
fn libtorch() {
    use std::path::Path;

    const SOURCE: &str = "src/backend/tch/fused.cpp";
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    // Set by torch-sys, which found libtorch or failed with what to do.
    let Some(folder) = std::env::var_os("DEP_TCH_LIBTORCH_LIB") else {
        println!("cargo::error=torch-sys does not say where libtorch is");
        return;
    };
    let folder = Path::new(&folder);
    let include = folder.with_file_name("include");
    if !include.join("ATen/ATen.h").is_file() {
        println!(
            "cargo::error={} has no headers of libtorch: set LIBTORCH to the folder that has \
             include/ and lib/, as `eval \"$(scripts/setup_libtorch)\"` does",
            include.display()
        );
        return;
    }
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .include(&include)
        .warnings(false)
        .file(SOURCE)
        .compile("altiplano_fused");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
    if folder.join("libtorch_cuda.so").is_file() {
        println!("cargo::rustc-cfg=libtorch_has_cuda");
    }
}
