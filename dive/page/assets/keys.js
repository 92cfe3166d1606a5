// keys
function buildKeys() {}
