//! Published peaks of NVIDIA GPUs: dense (no sparsity), at the boost clock, from the data sheets of
//! the products and, for GeForce and RTX, the white papers of their architectures. bf16 is the rate
//! of tensor cores with f32 sums; f32 that of the ordinary cores, because products in f32 are not
//! rounded to TF32 here.

use altiplano_model::Precision;

/// Words of a GPU's name, TFLOP/s in bf16, TFLOP/s in f32. The first row whose words are all in the
/// name counts, so the narrower row comes first.
const PEAKS: [(&str, f64, f64); 35] = [
    // Blackwell
    ("GB200", 2500.0, 80.0),
    ("B200", 2250.0, 75.0),
    ("GeForce RTX 5090", 209.5, 104.8),
    ("GeForce RTX 5080", 112.6, 56.3),
    // Hopper
    ("GH200", 989.4, 66.9),
    ("H200 NVL", 835.5, 60.3),
    ("H200", 989.4, 66.9),
    ("H100 PCIe", 756.4, 51.2),
    ("H100 NVL", 835.5, 60.3),
    ("H100", 989.4, 66.9),
    ("H800 PCIe", 756.4, 51.2),
    ("H800", 989.4, 66.9),
    ("H20", 148.0, 44.0),
    // Ada
    ("RTX 6000 Ada", 364.2, 91.1),
    ("L40S", 362.1, 91.6),
    ("L40", 181.1, 90.5),
    ("L4", 121.0, 30.3),
    ("GeForce RTX 4090", 165.2, 82.6),
    ("GeForce RTX 4080 SUPER", 104.4, 52.2),
    ("GeForce RTX 4080", 97.5, 48.7),
    ("GeForce RTX 4070 Ti SUPER", 88.2, 44.1),
    ("GeForce RTX 4070 Ti", 80.2, 40.1),
    ("GeForce RTX 4070", 58.3, 29.1),
    // Ampere
    ("A100", 312.0, 19.5),
    ("A800", 312.0, 19.5),
    ("A40", 149.7, 37.4),
    ("A30", 165.0, 10.3),
    ("A10G", 70.0, 35.0),
    ("A10", 125.0, 31.2),
    ("RTX A6000", 154.8, 38.7),
    ("RTX A5000", 111.1, 27.8),
    ("GeForce RTX 3090 Ti", 80.0, 40.0),
    ("GeForce RTX 3090", 71.0, 35.6),
    ("GeForce RTX 3080 Ti", 68.2, 34.1),
    ("GeForce RTX 3080", 59.5, 29.8),
];

/// Words that make another product of a name: with one that its row lacks, a GPU is not in the
/// table. MIG and GRID devices are parts of a GPU.
const OTHER_PRODUCT: [&str; 7] = ["Ti", "SUPER", "D", "Laptop", "Max", "MIG", "GRID"];

/// Dense peak of the GPU the driver calls `name`, in operations per second; none if it is not known.
pub fn published_flops_per_second(name: &str, precision: Precision) -> Option<f64> {
    let words: Vec<&str> = words(name).collect();
    let has = |wanted: &str| words.iter().any(|word| word.eq_ignore_ascii_case(wanted));
    let row = PEAKS.iter().find(|(row, ..)| self::words(row).all(has))?;
    let lacks = |word: &str| !self::words(row.0).any(|known| known.eq_ignore_ascii_case(word));
    if OTHER_PRODUCT.iter().any(|word| has(word) && lacks(word)) {
        return None;
    }
    let teraflops = match precision {
        Precision::Bf16 => row.1,
        Precision::F32 => row.2,
    };
    Some(teraflops * 1e12)
}

fn words(name: &str) -> impl Iterator<Item = &str> {
    name.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names as the driver gives them.
    #[test]
    fn names_of_the_driver_are_found() {
        for (name, teraflops) in [
            ("NVIDIA H200", 989.4),
            ("NVIDIA H200 NVL", 835.5),
            ("NVIDIA H100 80GB HBM3", 989.4),
            ("NVIDIA H100 PCIe", 756.4),
            ("NVIDIA H20", 148.0),
            ("NVIDIA GH200 480GB", 989.4),
            ("NVIDIA B200", 2250.0),
            ("NVIDIA GB200", 2500.0),
            ("NVIDIA A100-SXM4-80GB", 312.0),
            ("NVIDIA A100-PCIE-40GB", 312.0),
            ("A100-SXM4-40GB", 312.0),
            ("NVIDIA A10", 125.0),
            ("NVIDIA A10G", 70.0),
            ("NVIDIA L4", 121.0),
            ("NVIDIA L40", 181.1),
            ("NVIDIA L40S", 362.1),
            ("NVIDIA RTX 6000 Ada Generation", 364.2),
            ("NVIDIA RTX A6000", 154.8),
            ("NVIDIA GeForce RTX 4090", 165.2),
            ("NVIDIA GeForce RTX 4070 Ti SUPER", 88.2),
            ("NVIDIA GeForce RTX 3090 Ti", 80.0),
        ] {
            let found = published_flops_per_second(name, Precision::Bf16);
            assert_eq!(found, Some(teraflops * 1e12), "{name}");
        }
        assert_eq!(published_flops_per_second("NVIDIA H200", Precision::F32), Some(66.9 * 1e12));
    }

    #[test]
    fn another_product_is_not_taken_for_one_of_the_table() {
        for name in [
            "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
            "NVIDIA RTX A1000",
            "NVIDIA GeForce RTX 4090 Laptop GPU",
            "NVIDIA GeForce RTX 4090 D",
            "NVIDIA GeForce RTX 4070 SUPER",
            "NVIDIA GeForce GTX 1080",
            "Tesla V100-SXM2-16GB",
            "",
        ] {
            assert_eq!(published_flops_per_second(name, Precision::Bf16), None, "{name}");
        }
    }

    #[test]
    fn bf16_is_faster_than_f32_in_every_row_and_no_row_hides_another() {
        for (row, bf16, f32) in PEAKS {
            assert!(bf16 > f32 && f32 > 0.0, "{row}");
            let found = published_flops_per_second(row, Precision::Bf16);
            assert_eq!(found, Some(bf16 * 1e12), "{row}");
        }
    }
}
