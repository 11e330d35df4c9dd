//! The three binary interfaces of MPI, as one table over the type of a handle.
//!
//! | | Open MPI 4, 5 | MPICH, Intel, MVAPICH, Cray | standard ABI |
//! |---|---|---|---|
//! | handle | pointer | int | pointer |
//!
//! A library never sees a call through a signature of the wrong width: the interface is told by
//! the library's own symbols before anything is called. Only bytes are sent, MPI adds nothing up,
//! and no status is read, so no other constant and no layout of a struct is needed.

use std::ffi::{c_char, c_int, c_void};

use libloading::os::unix::Library;

use super::library::{Found, words};

/// A communicator, datatype, request, error handler or info, as the library writes it.
pub(super) trait Handle: Copy + PartialEq + 'static {}

impl Handle for *mut c_void {}

impl Handle for c_int {}

/// Which interface a library has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abi {
    OpenMpi,
    Mpich,
    Standard,
}

impl Abi {
    /// Of an open library, by its symbols. MPICH's own library exports the version of the standard
    /// ABI too, so the file's name decides there.
    pub fn of(found: &Found) -> Self {
        let name = found.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.contains("libmpi_abi") && has(&found.library, "MPI_Abi_get_version") {
            Self::Standard
        } else if has(&found.library, "ompi_mpi_comm_world") {
            Self::OpenMpi
        } else {
            Self::Mpich
        }
    }
}

fn has(library: &Library, symbol: &str) -> bool {
    // SAFETY: only asked whether it is there; the address is not used.
    unsafe { library.get::<*mut c_void>(symbol) }.is_ok()
}

/// Values that MPI's C header defines.
pub(super) struct Constants<H> {
    pub comm_world: H,
    pub byte: H,
    pub request_null: H,
    pub errors_return: H,
    pub info_null: H,
    pub status_ignore: *mut c_void,
    pub comm_type_shared: c_int,
    pub thread_funneled: c_int,
}

fn address(library: &Library, symbol: &str) -> Result<*mut c_void, String> {
    // SAFETY: the symbol is data; its address is the handle, and it is not read here.
    let found = unsafe { library.get::<*mut c_void>(symbol) };
    match found {
        Ok(found) => Ok(found.as_raw_ptr()),
        Err(error) => Err(format!("{}; expected a library of Open MPI 4 or 5", words(&error))),
    }
}

/// Open MPI's: handles are addresses of objects of the library.
pub(super) fn open_mpi(library: &Library) -> Result<Constants<*mut c_void>, String> {
    Ok(Constants {
        comm_world: address(library, "ompi_mpi_comm_world")?,
        byte: address(library, "ompi_mpi_byte")?,
        request_null: address(library, "ompi_request_null")?,
        errors_return: address(library, "ompi_mpi_errors_return")?,
        info_null: address(library, "ompi_mpi_info_null")?,
        status_ignore: std::ptr::null_mut(),
        comm_type_shared: 0,
        thread_funneled: 1,
    })
}

/// MPICH's: handles are numbers.
pub(super) fn mpich(_: &Library) -> Result<Constants<c_int>, String> {
    Ok(Constants {
        comm_world: 0x4400_0000,
        byte: 0x4c00_010d,
        request_null: 0x2c00_0000,
        errors_return: 0x5400_0001,
        info_null: 0x1c00_0000,
        status_ignore: std::ptr::without_provenance_mut(1),
        comm_type_shared: 1,
        thread_funneled: 1,
    })
}

/// The standard's: handles are small numbers in pointers.
pub(super) fn standard(_: &Library) -> Result<Constants<*mut c_void>, String> {
    let handle = std::ptr::without_provenance_mut;
    Ok(Constants {
        comm_world: handle(0x101),
        byte: handle(0x247),
        request_null: handle(0x180),
        errors_return: handle(0x143),
        info_null: handle(0x130),
        status_ignore: std::ptr::null_mut(),
        comm_type_shared: 221,
        thread_funneled: 1024,
    })
}

macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($argument:ty),*);)*) => {
        /// The functions that are called.
        pub(super) struct Functions<H> {
            $(pub $field: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl<H: Handle> Functions<H> {
            /// Those of a library. A message where one is missing.
            ///
            /// # Safety
            /// Handles of the library are of the width of `H`.
            pub unsafe fn load(library: &Library) -> Result<Self, String> {
                Ok(Self {
                    // SAFETY: the MPI standard gives these functions these arguments, with the
                    // library's own type of handles; the caller vouches for that.
                    $($field: *unsafe { library.get($symbol) }.map_err(missing)?,)*
                })
            }
        }
    };
}

fn missing(error: libloading::Error) -> String {
    format!("{}; expected an MPI library with the functions of MPI 3", words(&error))
}

functions! {
    init_thread = "MPI_Init_thread": fn(*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int);
    finalize = "MPI_Finalize": fn();
    abort = "MPI_Abort": fn(H, c_int);
    get_library_version = "MPI_Get_library_version": fn(*mut c_char, *mut c_int);
    error_string = "MPI_Error_string": fn(c_int, *mut c_char, *mut c_int);
    comm_rank = "MPI_Comm_rank": fn(H, *mut c_int);
    comm_size = "MPI_Comm_size": fn(H, *mut c_int);
    comm_split = "MPI_Comm_split": fn(H, c_int, c_int, *mut H);
    comm_split_type = "MPI_Comm_split_type": fn(H, c_int, c_int, H, *mut H);
    comm_free = "MPI_Comm_free": fn(*mut H);
    comm_set_errhandler = "MPI_Comm_set_errhandler": fn(H, H);
    isend = "MPI_Isend": fn(*const c_void, c_int, H, c_int, c_int, H, *mut H);
    irecv = "MPI_Irecv": fn(*mut c_void, c_int, H, c_int, c_int, H, *mut H);
    iallgather = "MPI_Iallgather":
        fn(*const c_void, c_int, H, *mut c_void, c_int, H, H, *mut H);
    test = "MPI_Test": fn(*mut H, *mut c_int, *mut c_void);
}
