// overview
function buildOverview() {}
