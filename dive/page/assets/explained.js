// explained
function buildExplained() {}
