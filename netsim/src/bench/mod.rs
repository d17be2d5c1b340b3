//! stub
#[derive(Debug, clap::Args)]
pub struct BenchArguments {}
pub async fn run(_: BenchArguments) -> anyhow::Result<()> {
    Ok(())
}
