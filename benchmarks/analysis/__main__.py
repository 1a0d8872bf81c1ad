from benchmarks.report.analyse import app

if __name__ == "__main__":
    app()
