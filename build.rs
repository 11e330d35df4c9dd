//! With the feature `tch`, lets binaries and tests find libtorch where the build found it, so that
//! they run without `LD_LIBRARY_PATH`. The package `altiplano-trainer` has this build script too.

fn main() {
    // Set by torch-sys, which is a dependency under that feature alone.
    const LIBRARIES: &str = "DEP_TCH_LIBTORCH_LIB";
    println!("cargo::rerun-if-env-changed={LIBRARIES}");
    if let Ok(folder) = std::env::var(LIBRARIES) {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
