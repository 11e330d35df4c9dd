//! Builds the shim that reaches SentencePiece's trainer. The `sentencepiece-sys` crate builds the
//! trainer's static library beside the runtime one and puts its folder on the link path.

fn main() {
    println!("cargo:rerun-if-changed=src/tokenizer/train_shim.cpp");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(true)
        .file("src/tokenizer/train_shim.cpp")
        .compile("altiplano_train_shim");
    // The trainer needs symbols of the runtime library, which comes after it on the link line.
    println!("cargo:rustc-link-lib=static=sentencepiece_train");
}
