/**
 * How many of each an organization may have where the installation's settings say nothing else, by the names of the quotas
 * (serverless-platform.md 4.5, control-plane.md 5.8): iam refuses one more, and quota shows it. They stand here because neither of the two rooms
 * looks at the other, and what is shown has to be what holds.
 */
export const MAXIMA = { IamApiKeys: 50, IamApplications: 100, IamGroups: 50, IamPolicies: 50, IamUsers: 50, AccountProjects: 25 } as const

/** The same as they hold in this installation (config.ts). */
export type Maxima = Readonly<Record<keyof typeof MAXIMA, number>>
