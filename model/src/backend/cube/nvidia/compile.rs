//! CUDA C++ to machine code by NVRTC.

use std::ffi::CString;
use std::path::PathBuf;

use cudarc::nvrtc::{result, sys};

use super::context::Outcome;

/// Machine code for `architecture` (as `sm_90`) of `source` with the macros `defines` and the
/// headers in `includes`.
///
/// # Errors
/// The compiler's log.
///
/// # Panics
/// Without NVRTC; the probe looks for it first.
pub(in super::super) fn machine_code(
    source: &str,
    architecture: &str,
    defines: &[(&str, usize)],
    includes: &[PathBuf],
) -> Outcome<Vec<u8>> {
    let source = CString::new(source).map_err(|error| error.to_string())?;
    let failed = |error: result::NvrtcError| format!("NVRTC: {error}");
    let program = result::create_program(&source, None).map_err(failed)?;
    let mut options = vec![format!("--gpu-architecture={architecture}"), "--std=c++17".to_string()];
    options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    options.extend(includes.iter().map(|path| format!("--include-path={}", path.display())));
    // SAFETY: the program is live until it is destroyed at the end; the buffer for the code has
    // the size NVRTC states.
    unsafe {
        let compiled = match result::compile_program(program, &options) {
            Ok(()) => {
                let mut size = 0;
                let mut code = Vec::new();
                sys::nvrtcGetCUBINSize(program, &mut size)
                    .result()
                    .map_err(failed)
                    .and_then(|()| {
                        code = vec![0u8; size];
                        let code = code.as_mut_ptr().cast();
                        sys::nvrtcGetCUBIN(program, code).result().map_err(failed)
                    })
                    .map(|()| code)
            }
            Err(error) => {
                let log = result::get_program_log(program).unwrap_or_default();
                let log: Vec<u8> = log.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
                Err(format!("NVRTC: {error}\n{}", String::from_utf8_lossy(&log)))
            }
        };
        result::destroy_program(program).map_err(failed)?;
        compiled
    }
}

/// Whether NVRTC is there for a test of `what`, which is skipped by name otherwise. The variable
/// `NVRTC_LIBRARY` may give its path (`…/nvidia/cuda_nvrtc/lib/libnvrtc.so.12` of the Python package
/// nvidia-cuda-nvrtc-cu12); else the loader finds it.
#[cfg(test)]
#[expect(clippy::print_stderr, reason = "tests say what they skip")]
pub(in super::super) fn nvrtc_for_tests(what: &str) -> bool {
    if let Some(path) = std::env::var_os("NVRTC_LIBRARY") {
        // SAFETY: NVRTC's initialisation has no conditions. Once it is in the process, opening it
        // by its name finds it.
        match unsafe { libloading::Library::new(&path) } {
            Ok(library) => std::mem::forget(library),
            Err(error) => panic!("NVRTC_LIBRARY: {error}"),
        }
    }
    // SAFETY: opens the library by its well-known names and closes it again.
    let present = unsafe { sys::is_culib_present() };
    assert!(present || std::env::var_os("NVRTC_LIBRARY").is_none(), "NVRTC_LIBRARY is not NVRTC");
    if !present {
        eprintln!("skipped: {what} through NVRTC (not found; NVRTC_LIBRARY may name it)");
    }
    present
}

/// Folders with the CUDA headers for tests: `CUDA_INCLUDE`, separated by colons, or those of the
/// installed toolkit.
#[cfg(test)]
pub(in super::super) fn includes_for_tests() -> Vec<PathBuf> {
    match std::env::var_os("CUDA_INCLUDE") {
        Some(paths) => std::env::split_paths(&paths).collect(),
        None => cubecl_cuda::install::cuda_path()
            .map(|root| vec![root.join("include"), root.join("include/cccl")])
            .unwrap_or_default(),
    }
}
