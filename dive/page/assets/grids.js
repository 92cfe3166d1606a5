// grids
