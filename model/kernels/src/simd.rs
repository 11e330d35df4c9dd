//! Which vector instructions this CPU has, and functions compiled once per level.
//!
//! The binary is built for baseline x86-64. [`vectorized!`] compiles a function body three
//! times (AVX-512, AVX2 with FMA, baseline) and picks one at run time, so plain loops over
//! slices become wide vector code where the CPU has it.

use std::sync::OnceLock;

/// The vector instructions the kernels use on this CPU, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CpuLevel {
    /// Only what the target guarantees.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, CD, DQ and VL.
    Avx512,
    /// AVX-512 with BF16 dot products: bf16 matrix products run at twice the f32 rate. All such CPUs
    /// have the dot products of 8-bit integers (VNNI) too.
    Avx512Bf16,
    /// The same and AMX tiles, which multiply bf16 several times faster still.
    Amx,
}

/// The level of this CPU, detected once.
pub fn cpu_level() -> CpuLevel {
    static LEVEL: OnceLock<CpuLevel> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> CpuLevel {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("f16c");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    let dot_products =
        is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vnni");
    match (avx2, avx512, dot_products) {
        (_, true, true) if tiles_are_permitted() => CpuLevel::Amx,
        (_, true, true) => CpuLevel::Avx512Bf16,
        (_, true, false) => CpuLevel::Avx512,
        (true, ..) => CpuLevel::Avx2,
        _ => CpuLevel::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> CpuLevel {
    CpuLevel::Portable
}

/// Whether this CPU has AMX tiles for bf16 and the system lets this process use them. Needs a CPU with
/// AVX-512.
#[cfg(target_arch = "x86_64")]
fn tiles_are_permitted() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    if __cpuid(0).eax < 7 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    features & AMX_BF16 != 0 && features & AMX_TILE != 0 && ask_for_tiles()
}

/// Asks Linux to save the 8 KiB of tiles of each thread, which it does only for processes that asked.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn ask_for_tiles() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let refused: isize;
    // SAFETY: a system call that reads and writes no memory of this process; it clobbers rcx and r11.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => refused,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    refused == 0
}

/// Tiles are used on Linux only.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn ask_for_tiles() -> bool {
    false
}

/// Defines functions whose body is compiled for AVX-512, AVX2 and the baseline, and chosen
/// by [`cpu_level`] at each call. What the body calls must be `#[inline(always)]` to be
/// compiled with it.
macro_rules! vectorized {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$($generic:ident : $bound:path),+>)? (
            $($arg:ident : $ty:ty),* $(,)?
        ) $(-> $ret:ty)? $body:block
    )*) => {$(
        $(#[$meta])*
        $vis fn $name $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi2")]
            fn avx512 $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                body $(::<$($generic),+>)? ($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi2")]
            fn avx2 $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                body $(::<$($generic),+>)? ($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            {
                let level = $crate::simd::cpu_level();
                if level >= $crate::simd::CpuLevel::Avx512 {
                    // SAFETY: cpu_level found these features on this CPU.
                    return unsafe { avx512 $(::<$($generic),+>)? ($($arg),*) };
                }
                if level >= $crate::simd::CpuLevel::Avx2 {
                    // SAFETY: cpu_level found these features on this CPU.
                    return unsafe { avx2 $(::<$($generic),+>)? ($($arg),*) };
                }
            }
            body $(::<$($generic),+>)? ($($arg),*)
        }
    )*};
}
pub(crate) use vectorized;

/// Elements one elementwise task handles: fixed, so that pieces never depend on threads,
/// and small enough for three f32 arrays to stay in a second-level cache.
pub const PIECE: usize = 16 * 1024;

/// Lanes of a reduction. Sums run in this many accumulators and are then added pairwise, so
/// a sum has one order whatever the vector width.
pub(crate) const LANES: usize = 16;

/// Adds the lanes pairwise.
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest lane.
#[inline(always)]
pub(crate) fn max_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = if lanes[i] > lanes[i + width] { lanes[i] } else { lanes[i + width] };
        }
        width /= 2;
    }
    lanes[0]
}
