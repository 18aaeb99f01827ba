document.documentElement.classList.add("script");
startCharts();
startTables();
